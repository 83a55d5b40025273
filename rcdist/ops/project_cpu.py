"""A product of int8 tokens on a CPU: int8 forward, scaled in the cache; float backward."""

# Shapes: M tokens, K input width, N output width.

from collections.abc import Sequence

import torch
from torch import Tensor

from rcdist.ops.int8_matmul import scaled_int8_matmul
from rcdist.ops.matmul import matmul
from rcdist.ops.matmul import product_dtype as product_dtype
from rcdist.ops.native import call
from rcdist.ops.topology import BlockDiagonalMap, DenseMap, HadamardMap, IdentityMap, LinearMap
from rcdist.ops.two_bits import TwoBitMap
from rcdist.ops.weights import nonzero


def forward(like: Tensor, codes_MK: Tensor, rows_M: Tensor, matrix: LinearMap, columns_N: Tensor) -> Tensor:
    """Return (codes A^T) * rows * columns, (M, N) in the dtype of `like`."""
    columns_N = columns_N.contiguous()
    if isinstance(matrix, TwoBitMap):
        return matrix.scaled_product(like, codes_MK, rows_M, columns_N)
    if isinstance(matrix, DenseMap):
        return scaled_int8_matmul(like, codes_MK, rows_M, matrix.ternary_NK, columns_N)
    out = torch.empty(len(codes_MK), matrix.shape[0], dtype=like.dtype)
    if isinstance(matrix, HadamardMap):
        return _hadamard(codes_MK, rows_M, None, columns_N, matrix, out, is_transposed=False, add=False)
    if isinstance(matrix, BlockDiagonalMap):
        return _block(codes_MK, rows_M, columns_N, matrix, out, is_transposed=False, add=False)
    if isinstance(matrix, IdentityMap):
        return _identity(codes_MK, rows_M, columns_N, out, is_transposed=False, add=False)
    return matrix.times(scale_rows(codes_MK, rows_M, like.dtype)) * columns_N.to(like.dtype)


def products(
    like: Tensor, codes_MK: Tensor, rows_M: Tensor, matrices: Sequence[LinearMap], columns: Sequence[Tensor]
) -> list[Tensor]:
    """Return `forward` of each matrix."""
    return [forward(like, codes_MK, rows_M, *each) for each in zip(matrices, columns, strict=True)]


def backward(dy_MN: Tensor, matrix: LinearMap, columns_N: Tensor, total_MK: Tensor | None) -> Tensor:
    """Return total + (dy * columns) A, (M, K); total is added to in place."""
    columns_N = columns_N.contiguous()
    add = total_MK is not None
    if isinstance(matrix, HadamardMap | BlockDiagonalMap | IdentityMap):
        out = torch.empty(len(dy_MN), matrix.shape[1], dtype=dy_MN.dtype) if total_MK is None else total_MK
        dy_MN = dy_MN.contiguous()
        if isinstance(matrix, HadamardMap):
            return _hadamard(dy_MN, None, columns_N, None, matrix, out, is_transposed=True, add=add)
        if isinstance(matrix, IdentityMap):
            return _identity(dy_MN, None, columns_N, out, is_transposed=True, add=add)
        return _block(dy_MN, None, columns_N, matrix, out, is_transposed=True, add=add)
    if isinstance(matrix, DenseMap):
        product_MK = matmul(dy_MN, scale_rows(matrix.ternary_NK, columns_N, dy_MN.dtype))
    else:
        product_MK = matrix.times_transposed((dy_MN * columns_N).to(dy_MN.dtype))
    return product_MK if total_MK is None else total_MK.add_(product_MK)


def scale_rows(codes_MK: Tensor, rows_M: Tensor, dtype: torch.dtype) -> Tensor:
    """Return codes * rows, (M, K) of a float dtype."""
    out = torch.empty(codes_MK.shape, dtype=dtype)
    call("scale_rows", out, codes_MK, rows_M, out, *codes_MK.shape)
    return out


def gain_gradient(
    dy_MN: Tensor, y_MN: Tensor, gain_N: Tensor, codes_MK: Tensor, rows_M: Tensor, matrix: LinearMap, scale: float
) -> Tensor:
    """Return the sum over tokens of dy * y / gain."""
    width = dy_MN.shape[1]
    sums = torch.zeros(torch.get_num_threads(), width)
    dy_MN, y_MN = dy_MN.contiguous(), y_MN.to(dy_MN.dtype).contiguous()
    call("dot_columns", dy_MN, dy_MN, width, y_MN, width, sums, len(dy_MN), width)
    return (sums.sum(0) / nonzero(gain_N.float())).to(gain_N.dtype)


def _hadamard(
    x: Tensor,
    rows: Tensor | None,
    columns_in: Tensor | None,
    columns_out: Tensor | None,
    matrix: HadamardMap,
    out: Tensor,
    *,
    is_transposed: bool,
    add: bool,
) -> Tensor:
    outputs, inputs = matrix.shape
    # A contraction is the transpose of an expansion, so multiplying by it contracts.
    contracts = is_transposed == (outputs >= inputs)
    if not contracts and columns_in is not None:
        x, columns_in = (x * columns_in).to(x.dtype), None
    first, second = matrix.first_SW, matrix.second_SW
    call(
        "hadamard",
        out,
        *(x.dtype == torch.int8, contracts, x, x.shape[1], rows, columns_in, columns_out),
        *(first, first.stride(0), second, second.stride(0), matrix.is_shared),
        *(matrix.inverse_SW if contracts else matrix.index_SW, out, out.shape[1]),
        *(len(x), matrix.width, max(outputs, inputs), matrix.size, add),
    )
    return out


def _block(
    x: Tensor,
    rows: Tensor | None,
    columns: Tensor,
    matrix: BlockDiagonalMap,
    out: Tensor,
    *,
    is_transposed: bool,
    add: bool,
) -> Tensor:
    blocks, outputs, inputs = matrix.ternary_BRC.shape
    table = matrix.ternary_BRC.float()
    arguments: tuple[Tensor | None, ...]
    if is_transposed:
        arguments = (columns, None, matrix.inverse_N, None, table, out)
        sizes = (outputs, inputs)
    else:
        arguments = (None, columns, None, matrix.permutation_N, table.transpose(1, 2).contiguous(), out)
        sizes = (inputs, outputs)
    call("block", out, x.dtype == torch.int8, x, rows, *arguments, len(x), blocks, *sizes, add)
    return out


def _identity(
    x: Tensor, rows: Tensor | None, columns: Tensor, out: Tensor, *, is_transposed: bool, add: bool
) -> Tensor:
    columns_in, columns_out = (columns, None) if is_transposed else (None, columns)
    sizes = (len(x), x.shape[1], out.shape[1])
    call("identity", out, x.dtype == torch.int8, x, rows, columns_in, columns_out, out, *sizes, add)
    return out
