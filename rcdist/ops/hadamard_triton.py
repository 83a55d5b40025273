"""The hadamard topology as one Triton kernel per direction: both transforms as products with matrices of 1 and -1."""

# Shapes: M tokens, W width of a transform, seen as a grid of P x Q channels, N outputs, S stacked transforms; one
# program: R tokens. A transform over P x Q channels is one over Q and one over P, each a product with a small matrix
# on the tensor cores; between them the tile is transposed.

import torch
import triton
import triton.language as tl
from torch import Tensor

from rcdist.ops import hadamard_runs_triton as runs_kernels
from rcdist.ops.hadamard_tile_triton import (
    TILE,
    float_of,
    kind_of,
    launch_of,
    load_matrices,
    product,
    signs_of,
    spread,
    turned,
)
from rcdist.ops.topology import HadamardMap


@triton.jit
def _expand_kernel(
    x, rows, columns, scale, signs, h_p, h_q, out, num_rows, outputs, factor,
    IS_CODES: tl.constexpr, HAS_ROWS: tl.constexpr, HAS_COLUMNS: tl.constexpr, HAS_SCALE: tl.constexpr,
    S: tl.constexpr, R: tl.constexpr, P: tl.constexpr, Q: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Store H D2 H D1 x for each of S stacked D2, scaled by row and column."""
    kind = h_p.dtype.element_ty
    W: tl.constexpr = P * Q
    hp, hq, channel, across = load_matrices(h_p, h_q, P, Q)
    line = tl.arange(0, R * P)
    i = (line % P * Q)[:, None] + tl.arange(0, Q)[None, :]
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
    y, rows, columns_in, columns_out, scale, signs, h_p, h_q, out, num_rows, inputs, factor, shrink,
    IS_CODES: tl.constexpr, HAS_ROWS: tl.constexpr, HAS_IN: tl.constexpr, HAS_OUT: tl.constexpr,
    HAS_SCALE: tl.constexpr, ADD: tl.constexpr,
    S: tl.constexpr, R: tl.constexpr, P: tl.constexpr, Q: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Store, or add, the transpose of `_expand_kernel` of y * columns_in."""
    kind = h_p.dtype.element_ty
    W: tl.constexpr = P * Q
    hp, hq, channel, across = load_matrices(h_p, h_q, P, Q)
    line = tl.arange(0, R * P)
    i = (line % P * Q)[:, None] + tl.arange(0, Q)[None, :]
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
            value = (total * shrink).to(kind)
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
    return matrix.bits_SW is not None and 256 <= matrix.size <= TILE


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
    launch = launch_of(out, matrix, kind_of(x_MW, dtype), 6 if is_small and matrix.num_stacked == 1 else 4)
    arguments = (x_MW, rows_M, columns_N, scale, launch.bits_SW, launch.h_p, launch.h_q, out)
    sizes = (len(x_MW), out.shape[1], launch.factor)
    flags = {
        "IS_CODES": x_MW.dtype == torch.int8,
        "HAS_ROWS": rows_M is not None,
        "HAS_COLUMNS": columns_N is not None,
        "HAS_SCALE": scale is not None,
        **launch.sizes,
    }
    if launch.runs > 1:
        runs_kernels.expand_kernel[(launch.programs,)](*arguments, *sizes, launch.scratch, RUNS=launch.runs, **flags)
    else:
        _expand_kernel[(launch.programs,)](*arguments, *sizes, STAGES=launch.stages, **flags)
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
    out = torch.empty(len(y_MN), matrix.width, dtype=dtype, device=y_MN.device) if total_MW is None else total_MW
    launch = launch_of(out, matrix, kind_of(y_MN, dtype), 4 if matrix.width <= 1024 else 6)
    arguments = (y_MN, rows_M, columns_N, columns_W, scale, launch.bits_SW, launch.h_p, launch.h_q, out)
    sizes = (len(y_MN), y_MN.shape[1], launch.factor / launch.shrink, launch.shrink)
    flags = {
        "IS_CODES": y_MN.dtype == torch.int8,
        "HAS_ROWS": rows_M is not None,
        "HAS_IN": columns_N is not None,
        "HAS_OUT": columns_W is not None,
        "HAS_SCALE": scale is not None,
        "ADD": total_MW is not None,
        **launch.sizes,
    }
    if launch.runs > 1:
        runs_kernels.contract_kernel[(launch.programs,)](*arguments, *sizes, launch.scratch, RUNS=launch.runs, **flags)
    else:
        _contract_kernel[(launch.programs,)](*arguments, *sizes, STAGES=launch.stages, **flags)
    return out


def _vector_or_scale(columns: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    """Return factors of columns as they are, or as the one that they all are."""
    return (None, columns) if columns is not None and columns.stride(0) == 0 else (columns, None)
