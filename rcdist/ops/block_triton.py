"""The block topology as one Triton kernel per direction: a product per block, whose outputs are written in place."""

# Shapes: M tokens, K inputs, N outputs, B blocks of C inputs and R outputs.

import torch
import triton
import triton.language as tl
from torch import Tensor

from rcdist.ops.topology import BlockDiagonalMap

_BM, _BR = 128, 64
"""Tokens and outputs of a block that are computed at a time."""
_MOST_INPUTS = 256


@triton.jit
def _places(inverse, first, count, j, RUN: tl.constexpr):
    """Return where the outputs first + j of the blocks, one after the other, stand; any place beyond count."""
    at = tl.load(inverse + first + j, mask=j < count, other=0)
    if RUN >= 8:  # what the compiler cannot know: 16 bytes lie side by side
        at = tl.max_contiguous(tl.multiple_of(at, RUN), RUN)
    return at


@triton.jit
def _forward_kernel(
    codes, ternary, rows, columns, inverse, out, M, N, K, R, C, columns_step,
    RUN: tl.constexpr, BM: tl.constexpr, BR: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """Store (codes ternary^T) * rows * columns for some tokens and outputs of one block."""
    tiles = tl.cdiv(R, BR)
    block = tl.program_id(0) // tiles
    m = (tl.program_id(1) * BM + tl.arange(0, BM)).to(tl.int64)
    j = tl.program_id(0) % tiles * BR + tl.arange(0, BR)
    c = tl.arange(0, BC)
    x = tl.load(codes + m[:, None] * K + (block * C + c)[None, :], mask=(m < M)[:, None] & (c < C)[None, :], other=0)
    table = ternary + (block * R + j)[None, :] * C + c[:, None]
    y = tl.dot(x, tl.load(table, mask=(j < R)[None, :] & (c < C)[:, None], other=0), out_dtype=tl.int32)
    n = _places(inverse, block * R, R, j, RUN)
    row = tl.load(rows + m, mask=m < M, other=0.0)
    column = tl.load(columns + n * columns_step, mask=j < R, other=0.0)
    y = y.to(tl.float32) * row[:, None] * column[None, :]
    tl.store(out + m[:, None] * N + n[None, :], y.to(out.dtype.element_ty), mask=(m < M)[:, None] & (j < R)[None, :])


@triton.jit
def _backward_kernel(
    dy, ternary, columns, inverse, out, M, N, K, R, C, columns_step,
    ADD: tl.constexpr, FULL: tl.constexpr, RUN: tl.constexpr, BM: tl.constexpr, BR: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """Store, or add, (dy * columns) ternary for some tokens and the inputs of one block."""
    block = tl.program_id(0)
    m = (tl.program_id(1) * BM + tl.arange(0, BM)).to(tl.int64)
    c = tl.arange(0, BC)
    sums = tl.zeros([BM, BC], tl.float32)
    for first in range(0, R, BR):
        j = first + tl.arange(0, BR)
        n = _places(inverse, block * R, R, j, RUN)
        there = (m < M)[:, None] & (j < R)[None, :]
        gradient = tl.load(dy + m[:, None] * N + n[None, :], mask=there, other=0.0)
        column = tl.load(columns + n * columns_step, mask=j < R, other=0.0)
        table = ternary + (block * R + j)[:, None] * C + c[None, :]
        weights = tl.load(table, mask=(j < R)[:, None] & (c < C)[None, :], other=0)
        scaled = gradient.to(tl.float32) * column[None, :]
        if FULL:
            sums = tl.dot(scaled, weights.to(tl.float32), sums, input_precision="ieee")
        else:
            sums = tl.dot(scaled.to(tl.bfloat16), weights.to(tl.bfloat16), sums)
    there = (m < M)[:, None] & (c < C)[None, :]
    place = out + m[:, None] * K + (block * C + c)[None, :]
    if ADD:
        sums += tl.load(place, mask=there, other=0.0).to(tl.float32)
    tl.store(place, sums.to(out.dtype.element_ty), mask=there)


def is_fused(matrix: BlockDiagonalMap) -> bool:
    """Say whether the kernels take this matrix: blocks of up to 256 inputs, which are one tile."""
    return matrix.ternary_BRC.shape[2] <= _MOST_INPUTS


def forward(
    codes_MK: Tensor, rows_M: Tensor, columns_N: Tensor, matrix: BlockDiagonalMap, dtype: torch.dtype
) -> Tensor:
    """Return (codes A^T) * rows * columns, (M, N)."""
    blocks, rows, inputs = matrix.ternary_BRC.shape
    out = torch.empty(len(codes_MK), matrix.shape[0], dtype=dtype, device=codes_MK.device)
    grid = (blocks * triton.cdiv(rows, _BR), triton.cdiv(len(codes_MK), _BM))
    _forward_kernel[grid](
        *(codes_MK, matrix.ternary_BRC, rows_M, columns_N, matrix.inverse_N, out),
        *(len(codes_MK), *matrix.shape, rows, inputs, columns_N.stride(0)),
        RUN=matrix.run,
        **_sizes(inputs),
    )
    return out


def backward(dy_MN: Tensor, columns_N: Tensor, matrix: BlockDiagonalMap, total_MK: Tensor | None) -> Tensor:
    """Return total + (dy * columns) A, (M, K); total is added to in place."""
    blocks, rows, inputs = matrix.ternary_BRC.shape
    shape = (len(dy_MN), matrix.shape[1])
    out = torch.empty(shape, dtype=dy_MN.dtype, device=dy_MN.device) if total_MK is None else total_MK
    _backward_kernel[(blocks, triton.cdiv(len(dy_MN), _BM))](
        *(dy_MN, matrix.ternary_BRC, columns_N, matrix.inverse_N, out),
        *(len(dy_MN), *matrix.shape, rows, inputs, columns_N.stride(0)),
        ADD=total_MK is not None,
        FULL=dy_MN.dtype == torch.float32 or dy_MN.device.type == "cpu",  # interpreted: no products of bfloat16
        RUN=matrix.run,
        **_sizes(inputs),
    )
    return out


def _sizes(inputs: int) -> dict[str, int]:
    # A product of int8 is at least 32 deep.
    return {"BM": _BM, "BR": _BR, "BC": max(triton.next_power_of_2(inputs), 32), "num_warps": 4}
