"""The ring topology as one Triton kernel: each output is a scaled input, or the sum of a few."""

# Shapes: M tokens, K inputs, N outputs, W width of one ring.

import torch
import triton
import triton.language as tl
from torch import Tensor

from rcdist.ops.topology import RingMap

_BM, _BN = 8, 256
"""Tokens and outputs that are computed at a time; an index is loaded once for all these tokens."""


@triton.jit
def _kernel(
    x, rows, columns, index, out, M, inputs, outputs, width, columns_step,
    TERMS: tl.constexpr, FORWARD: tl.constexpr, ADD: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """Store sums of inputs index[t, j] + t * width over TERMS; FORWARD: times row and column, else of (x * column)."""
    j = tl.program_id(0) * BN + tl.arange(0, BN)
    m = (tl.program_id(1) * BM + tl.arange(0, BM)).to(tl.int64)
    sums = tl.zeros([BM, BN], tl.float32)
    for t in tl.static_range(TERMS):
        at = tl.load(index + t * width + j, mask=j < outputs, other=0) + t * width
        there = (j < outputs) & (at < inputs)
        values = tl.load(x + m[:, None] * inputs + at[None, :], mask=(m < M)[:, None] & there[None, :], other=0)
        if FORWARD:
            sums += values.to(tl.float32)
        else:
            column = tl.load(columns + at * columns_step, mask=there, other=0.0).to(tl.float32)
            sums += values.to(tl.float32) * column[None, :]
    inside = (m < M)[:, None] & (j < outputs)[None, :]
    if FORWARD:
        row = tl.load(rows + m, mask=m < M, other=0.0)
        column = tl.load(columns + j * columns_step, mask=j < outputs, other=0.0).to(tl.float32)
        sums = sums * row[:, None] * column[None, :]
    place = out + m[:, None] * outputs + j[None, :]
    if ADD:
        sums += tl.load(place, mask=inside, other=0.0).to(tl.float32)
    tl.store(place, sums.to(out.dtype.element_ty), mask=inside)


def forward(codes_MK: Tensor, rows_M: Tensor, columns_N: Tensor, matrix: RingMap, dtype: torch.dtype) -> Tensor:
    """Return (codes A^T) * rows * columns, (M, N)."""
    out = torch.empty(len(codes_MK), matrix.shape[0], dtype=dtype, device=codes_MK.device)
    return _launch(codes_MK, rows_M, columns_N, matrix, out, FORWARD=True, ADD=False)


def backward(dy_MN: Tensor, columns_N: Tensor, matrix: RingMap, total_MK: Tensor | None) -> Tensor:
    """Return total + (dy * columns) A, (M, K); total is added to in place."""
    shape = (len(dy_MN), matrix.shape[1])
    out = torch.empty(shape, dtype=dy_MN.dtype, device=dy_MN.device) if total_MK is None else total_MK
    return _launch(dy_MN, columns_N, columns_N, matrix, out, FORWARD=False, ADD=total_MK is not None)


def _launch(
    x: Tensor, rows_M: Tensor, columns_N: Tensor, matrix: RingMap, out: Tensor, *, FORWARD: bool, ADD: bool
) -> Tensor:
    index, terms = matrix.index(is_transposed=not FORWARD)
    _kernel[(triton.cdiv(out.shape[1], _BN), triton.cdiv(len(x), _BM))](
        *(x, rows_M, columns_N, index, out, len(x), x.shape[1], out.shape[1], matrix.width, columns_N.stride(0)),
        TERMS=terms,
        FORWARD=FORWARD,
        ADD=ADD,
        BM=_BM,
        BN=_BN,
        num_warps=4,
    )
    return out
