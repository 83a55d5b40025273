"""The hadamard topology at widths of several runs, between whose transforms channels move from run to run."""

# Shapes as in hadamard_triton; a run has P x Q channels, and width W = RUNS x P x Q. Between the two halves a tile lies
# in scratch memory of its program, small enough to stay in the cache: there channels are found in their new runs.

import triton
import triton.language as tl

from rcdist.ops.hadamard_tile_triton import float_of, load_matrices, product, signs_of, spread, turned


@triton.jit
def expand_kernel(
    x, rows, columns, scale, signs, h_p, h_q, out, num_rows, outputs, factor, scratch,
    IS_CODES: tl.constexpr, HAS_ROWS: tl.constexpr, HAS_COLUMNS: tl.constexpr, HAS_SCALE: tl.constexpr,
    RUNS: tl.constexpr, S: tl.constexpr, R: tl.constexpr, P: tl.constexpr, Q: tl.constexpr,
):  # fmt: skip
    """Do as `hadamard_triton._expand_kernel`."""
    kind = h_p.dtype.element_ty
    SIZE: tl.constexpr = P * Q
    W: tl.constexpr = RUNS * SIZE
    hp, hq, channel, across = load_matrices(h_p, h_q, P, Q)
    line, line_q = tl.arange(0, R * P), tl.arange(0, R * Q)
    i = (line % P * Q)[:, None] + tl.arange(0, Q)[None, :]
    k = (line_q % Q)[:, None] + tl.arange(0, P)[None, :] * Q
    own = scratch + tl.program_id(0) * (R * W) + (line_q // Q * W)[:, None]
    if HAS_SCALE:
        factor *= tl.load(scale)
    for tile in range(tl.program_id(0), tl.cdiv(num_rows, R), tl.num_programs(0)):
        m = (tile * R + line // P).to(tl.int64)
        inside = (m < num_rows)[:, None] & (i < SIZE)
        for run in tl.range(RUNS, num_stages=1):
            value = tl.load(x + m[:, None] * W + run * SIZE + i, mask=inside, other=0)
            if IS_CODES:
                value = float_of(value, kind)
            value = value.to(kind) * spread(signs_of(signs + run * SIZE + channel, kind), R)
            value = turned(product(value, hq).to(kind), R, P, Q)
            tl.store(own + run * SIZE + k, product(value, hp).to(kind))
        tl.debug_barrier()
        if HAS_ROWS:
            row = tl.load(rows + m, mask=m < num_rows, other=0.0)
        for run in tl.range(RUNS, num_stages=1):
            value = tl.load(own + (run + W - k) % RUNS * SIZE + k)
            for s in tl.static_range(S):
                second = signs_of(signs + (s + 1) * W + run * SIZE + across, kind)
                y = turned(product(value * spread(second, R), hp).to(kind), R, Q, P)
                y = product(y, hq).to(tl.float32) * factor
                if HAS_ROWS:
                    y *= row[:, None]
                n = s * W + run * SIZE
                if HAS_COLUMNS:
                    column = tl.load(columns + n + channel, mask=channel < outputs - n, other=0.0).to(tl.float32)
                    y *= spread(column, R)
                place = out + m[:, None] * outputs + n + i
                tl.store(place, y.to(out.dtype.element_ty), mask=inside & (i < outputs - n))
        tl.debug_barrier()


@triton.jit
def contract_kernel(
    y, rows, columns_in, columns_out, scale, signs, h_p, h_q, out, num_rows, inputs, factor, shrink, scratch,
    IS_CODES: tl.constexpr, HAS_ROWS: tl.constexpr, HAS_IN: tl.constexpr, HAS_OUT: tl.constexpr,
    HAS_SCALE: tl.constexpr, ADD: tl.constexpr,
    RUNS: tl.constexpr, S: tl.constexpr, R: tl.constexpr, P: tl.constexpr, Q: tl.constexpr,
):  # fmt: skip
    """Do as `hadamard_triton._contract_kernel`."""
    kind = h_p.dtype.element_ty
    SIZE: tl.constexpr = P * Q
    W: tl.constexpr = RUNS * SIZE
    hp, hq, channel, across = load_matrices(h_p, h_q, P, Q)
    line, line_q = tl.arange(0, R * P), tl.arange(0, R * Q)
    i = (line % P * Q)[:, None] + tl.arange(0, Q)[None, :]
    k = (line_q % Q)[:, None] + tl.arange(0, P)[None, :] * Q
    own = scratch + tl.program_id(0) * (R * W) + (line_q // Q * W)[:, None]
    if HAS_SCALE:
        factor *= tl.load(scale)
    for tile in range(tl.program_id(0), tl.cdiv(num_rows, R), tl.num_programs(0)):
        m = (tile * R + line // P).to(tl.int64)
        inside = (m < num_rows)[:, None] & (i < SIZE)
        for run in tl.range(RUNS, num_stages=1):
            total = tl.zeros([R * Q, P], tl.float32)
            for s in tl.static_range(S):
                n = s * W + run * SIZE
                value = tl.load(y + m[:, None] * inputs + n + i, mask=inside & (i < inputs - n), other=0)
                if IS_CODES:
                    value = float_of(value, kind)
                if HAS_IN:
                    column = tl.load(columns_in + n + channel, mask=channel < inputs - n, other=0.0).to(tl.float32)
                    value = value.to(tl.float32) * spread(column, R)
                value = turned(product(value.to(kind), hq).to(kind), R, P, Q)
                second = signs_of(signs + (s + 1) * W + run * SIZE + across, tl.float32)
                total += product(value, hp).to(tl.float32) * spread(second, R)
            tl.store(own + run * SIZE + k, (total * shrink).to(kind))
        tl.debug_barrier()
        for run in tl.range(RUNS, num_stages=1):
            value = tl.load(own + (run + k) % RUNS * SIZE + k)
            value = turned(product(value, hp).to(kind), R, Q, P)
            last = signs_of(signs + run * SIZE + channel, tl.float32) * factor
            if HAS_OUT:
                last *= tl.load(columns_out + run * SIZE + channel).to(tl.float32)
            value = product(value, hq).to(tl.float32) * spread(last, R)
            if HAS_ROWS:
                value *= tl.load(rows + m, mask=m < num_rows, other=0.0)[:, None]
            place = out + m[:, None] * W + run * SIZE + i
            if ADD:
                value += tl.load(place, mask=inside, other=0.0).to(tl.float32)
            tl.store(place, value.to(out.dtype.element_ty), mask=inside)
        tl.debug_barrier()
