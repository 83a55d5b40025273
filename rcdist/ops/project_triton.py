"""A product of int8 tokens on a GPU: int8 forward with scales in the kernel, backward in the tokens' dtype."""

# Shapes: M tokens, K input width, N output width.

from collections.abc import Sequence

import torch
from torch import Tensor

from rcdist.ops import block_triton, hadamard_triton, product_triton, two_bits_triton
from rcdist.ops.product_triton import dense_product
from rcdist.ops.product_triton import scale_rows as scale_rows
from rcdist.ops.topology import BlockDiagonalMap, DenseMap, HadamardMap, LinearMap
from rcdist.ops.two_bits import TwoBitPlanes


def product_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of backward products: the tokens' own."""
    return dtype


def forward(like: Tensor, codes_MK: Tensor, rows_M: Tensor, matrix: LinearMap, columns_N: Tensor) -> Tensor:
    """Return (codes A^T) * rows * columns, (M, N) in the dtype of `like`."""
    if isinstance(matrix, DenseMap):
        return dense_product(like, codes_MK, rows_M, matrix.ternary_NK, columns_N)
    if isinstance(matrix, HadamardMap) and hadamard_triton.is_fused(matrix):
        if matrix.shape[0] >= matrix.shape[1]:
            return hadamard_triton.expand(codes_MK, rows_M, columns_N, matrix, like.dtype)
        return hadamard_triton.contract(codes_MK, rows_M, None, columns_N, matrix, like.dtype)
    if isinstance(matrix, BlockDiagonalMap) and block_triton.is_fused(matrix):
        return block_triton.forward(codes_MK, rows_M, columns_N, matrix, like.dtype)
    return (matrix.times(scale_rows(codes_MK, rows_M, like.dtype)) * columns_N).to(like.dtype)


def products(
    like: Tensor, codes_MK: Tensor, rows_M: Tensor, matrices: Sequence[LinearMap], columns: Sequence[Tensor]
) -> list[Tensor]:
    """Return `forward` of each matrix; those of two bits a weight are multiplied together."""
    packed = [i for i, matrix in enumerate(matrices) if isinstance(matrix, TwoBitPlanes)]
    found: dict[int, Tensor] = {}
    if packed:
        tables = [matrices[i].packed for i in packed]  # type: ignore[attr-defined]
        together = two_bits_triton.products(like, codes_MK, rows_M, tables, [columns[i] for i in packed])
        found = dict(zip(packed, together, strict=True))
    return [
        found[i] if i in found else forward(like, codes_MK, rows_M, matrix, columns[i])
        for i, matrix in enumerate(matrices)
    ]


def backward(dy_MN: Tensor, matrix: LinearMap, columns_N: Tensor, total_MK: Tensor | None) -> Tensor:
    """Return total + (dy * columns) A, (M, K); total is added to in place."""
    if isinstance(matrix, DenseMap):
        matrix_NK = matrix.scaled_NK
        if matrix_NK is None or matrix_NK.dtype != dy_MN.dtype:
            matrix_NK = scale_rows(matrix.ternary_NK, columns_N, dy_MN.dtype)
        if total_MK is None:
            return dy_MN @ matrix_NK
        return torch.addmm(total_MK, dy_MN, matrix_NK, out=total_MK)
    if isinstance(matrix, BlockDiagonalMap) and block_triton.is_fused(matrix):
        return block_triton.backward(dy_MN.contiguous(), columns_N, matrix, total_MK)
    if isinstance(matrix, HadamardMap) and hadamard_triton.is_fused(matrix):
        if matrix.shape[0] >= matrix.shape[1]:
            return hadamard_triton.contract(dy_MN.contiguous(), None, columns_N, None, matrix, dy_MN.dtype, total_MK)
        if columns_N.stride(0) == 0:
            product_MK = hadamard_triton.expand(dy_MN.contiguous(), None, columns_N, matrix, dy_MN.dtype)
        else:
            scaled_MN = (dy_MN * columns_N).to(dy_MN.dtype)
            product_MK = hadamard_triton.expand(scaled_MN, None, None, matrix, dy_MN.dtype)
    else:
        product_MK = matrix.times_transposed((dy_MN * columns_N).to(dy_MN.dtype))
    return product_MK if total_MK is None else total_MK.add_(product_MK)


def gain_gradient(
    dy_MN: Tensor, y_MN: Tensor, gain_N: Tensor, codes_MK: Tensor, rows_M: Tensor, matrix: LinearMap, scale: float
) -> Tensor:
    """Return the sum over tokens of dy * y / gain."""
    return product_triton.gain_gradient(dy_MN.contiguous(), y_MN, gain_N)
