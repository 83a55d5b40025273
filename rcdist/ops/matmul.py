"""Float matrix product that picks the fastest way on a CPU."""

# Shapes: M rows, K summed, N columns.

import torch
from torch import Tensor

from rcdist.ops.processor import has_bf16, has_onednn_avx512


def matmul(a_MK: Tensor, b_KN: Tensor) -> Tensor:
    """Multiply two matrices of one float dtype; the same as `a @ b` up to the order of summation.

    On a CPU, `@` in float32 calls MKL, which stays with AVX2 on AMD: with AVX-512, oneDNN's product takes less time
    there. It is strict float32 too; it reads b in either order, but copies a transposed a, which MKL does not.
    """
    if a_MK.device.type != "cpu":
        return a_MK @ b_KN
    wide = product_dtype(a_MK.dtype)
    if wide != a_MK.dtype:
        return matmul(a_MK.to(wide), b_KN.to(wide)).to(a_MK.dtype)
    if a_MK.dtype == torch.float32 and has_onednn_avx512() and a_MK.is_contiguous() and a_MK.numel():
        product: Tensor = torch.ops.mkldnn._linear_pointwise(a_MK, b_KN.t(), None, "none", [], "")
        return product
    return a_MK @ b_KN


def product_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype in which this CPU multiplies matrices of a dtype: float32 for a bfloat16 that would be slow."""
    return torch.float32 if dtype == torch.bfloat16 and not has_bf16() else dtype
