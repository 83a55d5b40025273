"""The hadamard topology as one Triton kernel per direction: both transforms as products with matrices of 1 and -1."""

# Shapes: M tokens, W width of a transform, seen as a grid of P x Q channels, N outputs, S stacked transforms; one
# program: R tokens. A transform over P x Q channels is one over Q and one over P, each a product with a small matrix
# on the tensor cores; between them the tile is transposed.

from dataclasses import dataclass
from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from rcdist.ops.topology import HadamardMap
from rcdist.ops.topology.hadamard import hadamard_matrix
from rcdist.ops.triton_common import multiprocessors

_TILE, _WARPS = 4096, 4
"""Channels, all its tokens together, and warps of a program: the fastest of 8192 to 32768 and 2 to 8 on an H100."""


@triton.jit
def product(x, h):
    """Return x h, in float16 where both are, else in float32."""
    if x.dtype == tl.float16:
        y = tl.dot(x, h, out_dtype=tl.float16)
    elif x.dtype == tl.float32:
        y = tl.dot(x, h, input_precision="ieee")
    else:
        y = tl.dot(x, h)
    return y


@triton.jit
def signs_of(at, kind: tl.constexpr):
    """Load signs, which are kept as the bits of 1 and -1 in float16."""
    bits = tl.load(at)
    if kind == tl.float16:
        sign = bits.to(kind, bitcast=True)
    elif kind == tl.bfloat16:
        sign = ((bits & -32768) | 0x3F80).to(kind, bitcast=True)
    else:
        sign = (((bits.to(tl.int32) & 0x8000) << 16) | 0x3F800000).to(kind, bitcast=True)
    return sign


@triton.jit
def float_of(codes, kind: tl.constexpr):
    """Return int8 codes as float16 by way of the bits of 1024 + 128 + code, which is faster than a conversion."""
    if kind == tl.float16:
        value = (((codes.to(tl.int16) & 255) ^ 128) | 0x6400).to(tl.float16, bitcast=True) - 1152.0
    else:
        value = codes.to(kind)
    return value


@triton.jit
def turned(x, R: tl.constexpr, A: tl.constexpr, B: tl.constexpr):
    """Transpose each of R tiles A x B that lie under one another."""
    return tl.reshape(tl.permute(tl.reshape(x, [R, A, B]), 0, 2, 1), [R * B, A])


@triton.jit
def spread(x, R: tl.constexpr):
    """Repeat a tile (A, B) under itself, R times."""
    return tl.reshape(tl.broadcast_to(x[None, :, :], [R, x.shape[0], x.shape[1]]), [R * x.shape[0], x.shape[1]])


@triton.jit
def _expand_kernel(
    x, rows, columns, scale, signs, h_p, h_q, out, num_rows, outputs, factor,
    IS_CODES: tl.constexpr, HAS_ROWS: tl.constexpr, HAS_COLUMNS: tl.constexpr, HAS_SCALE: tl.constexpr,
    S: tl.constexpr, R: tl.constexpr, P: tl.constexpr, Q: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Store H D2 H D1 x for each of S stacked D2, scaled by row and column."""
    kind = h_p.dtype.element_ty
    W: tl.constexpr = P * Q
    p, q = tl.arange(0, P), tl.arange(0, Q)
    hp = tl.load(h_p + p[:, None] * P + p[None, :])
    hq = tl.load(h_q + q[:, None] * Q + q[None, :])
    line = tl.arange(0, R * P)
    i = (line % P * Q)[:, None] + q[None, :]
    channel = p[:, None] * Q + q[None, :]
    across = p[None, :] * Q + q[:, None]
    if HAS_SCALE:
        factor *= tl.load(scale)
    first = signs_of(signs + channel, kind)
    if S == 1:  # the tables stay in registers
        second = signs_of(signs + W + across, kind)
        if HAS_COLUMNS:
            column = tl.load(columns + channel, mask=channel < outputs, other=0.0).to(tl.float32) * factor
    for tile in tl.range(tl.program_id(0), tl.cdiv(num_rows, R), tl.num_programs(0), num_stages=STAGES):
        m = (tile * R + line // P).to(tl.int64)
        inside = (m < num_rows)[:, None] & (i < W)
        value = tl.load(x + m[:, None] * W + i, mask=inside, other=0)
        if IS_CODES:
            value = float_of(value, kind)
        value = value.to(kind) * spread(first, R)
        value = turned(product(value, hq).to(kind), R, P, Q)
        value = product(value, hp).to(kind)
        if HAS_ROWS:
            row = tl.load(rows + m, mask=m < num_rows, other=0.0)
        for s in tl.static_range(S):
            if S > 1:
                second = signs_of(signs + (s + 1) * W + across, kind)
            y = turned(product(value * spread(second, R), hp).to(kind), R, Q, P)
            y = product(y, hq).to(tl.float32)
            if HAS_ROWS:
                y *= row[:, None]
            if HAS_COLUMNS:
                if S > 1:
                    n = s * W + channel
                    column = tl.load(columns + n, mask=n < outputs, other=0.0).to(tl.float32) * factor
                y *= spread(column, R)
            else:
                y *= factor
            place = out + m[:, None] * outputs + s * W + i
            tl.store(place, y.to(out.dtype.element_ty), mask=inside & (i < outputs - s * W))


@triton.jit
def _contract_kernel(
    y, rows, columns_in, columns_out, scale, signs, h_p, h_q, out, num_rows, inputs, factor,
    IS_CODES: tl.constexpr, HAS_ROWS: tl.constexpr, HAS_IN: tl.constexpr, HAS_OUT: tl.constexpr,
    HAS_SCALE: tl.constexpr, ADD: tl.constexpr,
    S: tl.constexpr, R: tl.constexpr, P: tl.constexpr, Q: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Store, or add, the transpose of `_expand_kernel` of y * columns_in."""
    kind = h_p.dtype.element_ty
    W: tl.constexpr = P * Q
    p, q = tl.arange(0, P), tl.arange(0, Q)
    hp = tl.load(h_p + p[:, None] * P + p[None, :])
    hq = tl.load(h_q + q[:, None] * Q + q[None, :])
    line = tl.arange(0, R * P)
    i = (line % P * Q)[:, None] + q[None, :]
    channel = p[:, None] * Q + q[None, :]
    across = p[None, :] * Q + q[:, None]
    if S == 1:  # the tables stay in registers
        second = signs_of(signs + W + across, kind)
        if HAS_IN:
            column = tl.load(columns_in + channel, mask=channel < inputs, other=0.0).to(tl.float32)
    if HAS_SCALE:
        factor *= tl.load(scale)
    last = signs_of(signs + channel, tl.float32) * factor
    if HAS_OUT:
        last *= tl.load(columns_out + channel).to(tl.float32)
    for tile in tl.range(tl.program_id(0), tl.cdiv(num_rows, R), tl.num_programs(0), num_stages=STAGES):
        m = (tile * R + line // P).to(tl.int64)
        inside = (m < num_rows)[:, None] & (i < W)
        if S > 1:
            total = tl.zeros([R * Q, P], tl.float32)
        for s in tl.static_range(S):
            value = tl.load(y + m[:, None] * inputs + s * W + i, mask=inside & (i < inputs - s * W), other=0)
            if IS_CODES:
                value = float_of(value, kind)
            if S > 1:
                second = signs_of(signs + (s + 1) * W + across, kind)
                if HAS_IN:
                    n = s * W + channel
                    column = tl.load(columns_in + n, mask=n < inputs, other=0.0).to(tl.float32)
            if HAS_IN:
                value = value.to(tl.float32) * spread(column, R)
            value = turned(product(value.to(kind), hq).to(kind), R, P, Q)
            value = product(value, hp)
            if S > 1:
                total += value.to(tl.float32) * spread(second.to(tl.float32), R)
            else:
                value = value.to(kind) * spread(second, R)
        if S > 1:
            value = total.to(kind)
        value = turned(product(value, hp).to(kind), R, Q, P)
        value = product(value, hq).to(tl.float32) * spread(last, R)
        if HAS_ROWS:
            value *= tl.load(rows + m, mask=m < num_rows, other=0.0)[:, None]
        place = out + m[:, None] * W + i
        if ADD:
            value += tl.load(place, mask=inside, other=0.0).to(tl.float32)
        tl.store(place, value.to(out.dtype.element_ty), mask=inside)


def is_fused(matrix: HadamardMap) -> bool:
    """Say whether the kernels take this matrix: not of generator version 1, with runs of 256 to 4096 channels."""
    return matrix.bits_SW is not None and 256 <= matrix.size <= _TILE


def expand(
    x_MW: Tensor, rows_M: Tensor | None, columns_N: Tensor | None, matrix: HadamardMap, dtype: torch.dtype
) -> Tensor:
    """Return the stacked transforms of x, each output scaled by its row and column, (M, N).

    Args:
        x_MW: int8 codes, or of `dtype`.
    """
    out = torch.empty(len(x_MW), max(matrix.shape), dtype=dtype, device=x_MW.device)
    columns_N, scale = _vector_or_scale(columns_N)
    is_small = matrix.width <= 1024
    launch = _launch(out, matrix, _kind(x_MW, dtype), 6 if is_small and matrix.num_stacked == 1 else 4)
    if launch.runs > 1:
        from rcdist.ops import hadamard_runs_triton

        hadamard_runs_triton.expand(x_MW, rows_M, columns_N, scale, out, launch)
        return out
    _expand_kernel[(launch.programs,)](
        *(x_MW, rows_M, columns_N, scale, launch.bits_SW, launch.h_p, launch.h_q, out),
        *(len(x_MW), out.shape[1], launch.factor),
        IS_CODES=x_MW.dtype == torch.int8,
        HAS_ROWS=rows_M is not None,
        HAS_COLUMNS=columns_N is not None,
        HAS_SCALE=scale is not None,
        STAGES=2 if is_small and matrix.num_stacked > 1 else 1,
        **launch.sizes,
    )
    return out


def contract(
    y_MN: Tensor,
    rows_M: Tensor | None,
    columns_N: Tensor | None,
    columns_W: Tensor | None,
    matrix: HadamardMap,
    dtype: torch.dtype,
    total_MW: Tensor | None = None,
) -> Tensor:
    """Return the transpose of `expand` of y * columns_N, scaled by its row and columns_W, (M, W); added to total."""
    columns_N, scale_in = _vector_or_scale(columns_N)
    columns_W, scale_out = _vector_or_scale(columns_W)
    scale = scale_out if scale_in is None else scale_in  # one of the two has columns: a forward or a backward pass
    is_small, add = matrix.width <= 1024, total_MW is not None
    out = torch.empty(len(y_MN), matrix.width, dtype=dtype, device=y_MN.device) if total_MW is None else total_MW
    launch = _launch(out, matrix, _kind(y_MN, dtype), 4 if is_small else 6)
    if launch.runs > 1:
        from rcdist.ops import hadamard_runs_triton

        hadamard_runs_triton.contract(y_MN, rows_M, columns_N, columns_W, scale, out, launch, add=add)
        return out
    _contract_kernel[(launch.programs,)](
        *(y_MN, rows_M, columns_N, columns_W, scale, launch.bits_SW, launch.h_p, launch.h_q, out),
        *(len(y_MN), y_MN.shape[1], launch.factor),
        IS_CODES=y_MN.dtype == torch.int8,
        HAS_ROWS=rows_M is not None,
        HAS_IN=columns_N is not None,
        HAS_OUT=columns_W is not None,
        HAS_SCALE=scale is not None,
        ADD=add,
        STAGES=2 if is_small and matrix.num_stacked > 1 else 1,
        **launch.sizes,
    )
    return out


@dataclass(frozen=True)
class Launch:
    """Say how the kernels are launched for a matrix.

    Attributes:
        programs: as many as are at work at once, each with many tiles.
        runs: of the width.
        bits_SW: D1 and every D2 as the bits of float16.
        h_p: the Walsh-Hadamard matrix of size P, of 1/8 and -1/8, which keeps float16 below its largest, 65504.
        h_q: of size Q, of 1 and -1.
        factor: what makes the two transforms orthonormal.
        sizes: stacked transforms S, tokens R of a tile, P, Q and warps.
    """

    programs: int
    runs: int
    bits_SW: Tensor
    h_p: Tensor
    h_q: Tensor
    factor: float
    sizes: dict[str, int]


def _launch(out: Tensor, matrix: HadamardMap, kind: torch.dtype, per_multiprocessor: int) -> Launch:
    log = matrix.size.bit_length() - 1
    p, q, rows = 1 << (log - log // 2), 1 << log // 2, max(_TILE // matrix.size, 1)
    programs = min(triton.cdiv(len(out), rows), per_multiprocessor * multiprocessors(out.device))
    assert matrix.bits_SW is not None
    return Launch(
        programs=programs,
        runs=matrix.width // matrix.size,
        bits_SW=matrix.bits_SW,
        h_p=_signs_matrix(p, 0.125, kind, out.device),
        h_q=_signs_matrix(q, 1.0, kind, out.device),
        factor=64 / matrix.size,
        sizes={"S": matrix.num_stacked, "R": rows, "P": p, "Q": q, "num_warps": _WARPS},
    )


def _vector_or_scale(columns: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    """Return factors of columns as they are, or as the one that they all are."""
    return (None, columns) if columns is not None and columns.stride(0) == 0 else (columns, None)


def _kind(x: Tensor, dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of the products: codes are exact in float16, which has more digits than bfloat16."""
    if dtype == torch.float32 or x.device.type == "cpu":  # interpreted: there are no products of bfloat16
        return torch.float32
    return torch.float16 if x.dtype == torch.int8 else dtype


@cache
def _signs_matrix(size: int, value: float, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return the Walsh-Hadamard matrix of a power of two, of plus and minus `value`."""
    return (hadamard_matrix(size, torch.float64, torch.device("cpu")).sign() * value).to(device, dtype)
