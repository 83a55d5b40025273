"""Float matrix product that picks the faster CPU library."""

# Shapes: M rows, K summed, N columns.

from functools import cache

import torch
from torch import Tensor


def matmul(a_MK: Tensor, b_KN: Tensor) -> Tensor:
    """Multiply two matrices of one float dtype; the same as `a @ b` up to the order of summation.

    On a CPU, `@` in float32 calls MKL, which stays with AVX2 on AMD: with AVX-512, oneDNN's product takes half the
    time there. It is strict float32; it reads b in either order, but copies a transposed a.
    """
    if a_MK.dtype == torch.float32 and a_MK.device.type == "cpu" and has_onednn_avx512():
        product: Tensor = torch.ops.mkldnn._linear_pointwise(a_MK, b_KN.t(), None, "none", [], "")
        return product
    return a_MK @ b_KN


@cache
def has_onednn_avx512() -> bool:
    """Say whether this process has oneDNN and a CPU with AVX-512."""
    return torch.backends.mkldnn.is_available() and "AVX512" in torch.backends.cpu.get_cpu_capability()
