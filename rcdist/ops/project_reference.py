"""A product of tokens in plain PyTorch, also of tokens and matrices that are not rounded."""

# Shapes: M tokens, K input width, N output width.

from collections.abc import Sequence

import torch
from torch import Tensor

from rcdist.ops.int8_matmul import is_int8_on_cpu
from rcdist.ops.topology import DenseMap, LinearMap


def product_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of backward products: the tokens' own."""
    return dtype


def forward(
    like: Tensor, codes_MK: Tensor, rows_M: Tensor | None, matrix: LinearMap, columns_N: Tensor | None
) -> Tensor:
    """Return (codes A^T) * rows * columns, (M, N) in the dtype of `like`; integer codes are summed exactly."""
    if not (isinstance(matrix, DenseMap) and is_int8_on_cpu(codes_MK, matrix.ternary_NK)):
        codes_MK = codes_MK.to(like.dtype)  # codes up to 127 are exact in bfloat16 too
    scale = columns_N if rows_M is None else rows_M.unsqueeze(1)
    if rows_M is not None and columns_N is not None:
        scale = rows_M.unsqueeze(1) * columns_N  # in this order compiled kernels round too
    y_MN = matrix.times(codes_MK)
    return (y_MN if scale is None else y_MN * scale).to(like.dtype)


def products(
    like: Tensor,
    codes_MK: Tensor,
    rows_M: Tensor | None,
    matrices: Sequence[LinearMap],
    columns: Sequence[Tensor | None],
) -> list[Tensor]:
    """Return `forward` of each matrix."""
    return [forward(like, codes_MK, rows_M, *each) for each in zip(matrices, columns, strict=True)]


def backward(dy_MN: Tensor, matrix: LinearMap, columns_N: Tensor | None, total_MK: Tensor | None) -> Tensor:
    """Return total + (dy * columns) A, (M, K)."""
    product_MK = matrix.times_transposed(dy_MN if columns_N is None else (dy_MN * columns_N).to(dy_MN.dtype))
    return product_MK if total_MK is None else total_MK + product_MK


def scale_rows(codes_MK: Tensor, rows_M: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Return codes * rows, (M, K) of a float dtype."""
    return (codes_MK if rows_M is None else codes_MK * rows_M.unsqueeze(1)).to(dtype)


def gain_gradient(
    dy_MN: Tensor,
    y_MN: Tensor,
    gain_N: Tensor,
    codes_MK: Tensor,
    rows_M: Tensor | None,
    matrix: LinearMap,
    scale: float,
) -> Tensor:
    """Return the sum over tokens of dy times the product without its gain."""
    columns_N = torch.full_like(gain_N, scale, dtype=torch.promote_types(gain_N.dtype, torch.float32))
    ungained_MN = forward(dy_MN, codes_MK, rows_M, matrix, columns_N)
    return (dy_MN * ungained_MN).sum(0, dtype=columns_N.dtype).to(gain_N.dtype)
