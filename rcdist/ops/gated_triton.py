"""Readout and GLU as one Triton kernel per direction."""

# Shapes: one program holds whole rows of D channels; M rows.

import torch
import triton
import triton.language as tl
from torch import Tensor

from rcdist.ops.product_triton import gain_gradient
from rcdist.ops.topology import IdentityMap
from rcdist.ops.triton_common import (
    column_sums,
    early,
    forward_warps,
    load_factor,
    num_programs,
    num_warps,
    store_rounded,
    wait_for_inputs,
)

_FORWARD, _READOUT = 32, 8
"""Channels a thread, forward and in the readout's backward pass; the fastest of 4, 8, 16 and 32 on an H100."""


_MOST_SUMMED = 4096
_FOLDED = 4096
"""Channels of a program that folds: 32 a thread."""


def _glu_channels(block: int, has_factors: bool) -> int:
    """Return channels a thread in the GLU's backward pass, the fastest likewise at widths 2816 and 5632."""
    if block > _MOST_SUMMED:
        return 16
    return 8 if has_factors else 32


@triton.jit
def _load_right(b, b_rows, b_scale, m, width, i, inside, REPEAT: tl.constexpr):
    """Load a row of b; REPEAT: of b_scale times so many channels again and again, which are codes with a row's scale."""
    if REPEAT:
        codes = tl.load(b + tl.cast(m, tl.int64) * REPEAT + i % REPEAT, mask=inside, other=0)
        right = codes.to(tl.float32) * (tl.load(b_rows + m) * b_scale)
    else:
        right = tl.load(b + tl.cast(m, tl.int64) * width + i, mask=inside, other=0.0).to(tl.float32)
    return right


@triton.jit
def _forward_kernel(
    a, b, b_rows, b_scale, a_factor, b_factor, a_gain, gain, codes, scale, inverses, rows, width, eps,
    REPEAT: tl.constexpr, A_FACTOR: tl.constexpr, B_FACTOR: tl.constexpr, IS_GLU: tl.constexpr, EARLY: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    wait_for_inputs(EARLY)
    m = tl.program_id(0)
    row = m.to(tl.int64) * width
    i = tl.arange(0, BLOCK)
    inside = i < width
    left = tl.load(a + row + i, mask=inside, other=0.0).to(tl.float32)
    right = _load_right(b, b_rows, b_scale, m, width, i, inside, REPEAT)
    if A_FACTOR:
        left *= load_factor(a_factor + i, inside)
    if B_FACTOR:
        right *= load_factor(b_factor + i, inside)
    if IS_GLU:
        u = left * tl.sigmoid(left) * right
    else:
        a_inverse = 1.0 / tl.sqrt(tl.sum(left * left) / width + eps)
        tl.store(inverses + m, a_inverse)
        left = left * a_inverse * tl.load(a_gain + i, mask=inside, other=0.0).to(tl.float32)
        u = left * (right * tl.sigmoid(right))
    u_inverse = 1.0 / tl.sqrt(tl.sum(u * u) / width + eps)
    tl.store(inverses + rows + m, u_inverse)
    z = u * u_inverse * tl.load(gain + i, mask=inside, other=0.0).to(tl.float32)
    store_rounded(z, codes + row, scale + m, i, inside)


@triton.jit
def _backward_kernel(
    a, b, b_rows, b_scale, a_factor, b_factor, a_gain, gain, inverses, dz, da, db, sums, rows, width,
    REPEAT: tl.constexpr, A_FACTOR: tl.constexpr, B_FACTOR: tl.constexpr, IS_GLU: tl.constexpr, BLOCK: tl.constexpr,
    SUMS: tl.constexpr,
):  # fmt: skip
    """Store da and db; and this program's sums over its rows for the gradients of gain, a_gain and, SUMS, the factors."""
    program, count = tl.program_id(0), tl.num_programs(0)
    i = tl.arange(0, BLOCK)
    inside = i < width
    gains = tl.load(gain + i, mask=inside, other=0.0).to(tl.float32)
    gain_sums, inner_sums = tl.zeros([BLOCK], tl.float32), tl.zeros([BLOCK], tl.float32)
    a_sums, b_sums = tl.zeros([BLOCK], tl.float32), tl.zeros([BLOCK], tl.float32)
    if not IS_GLU:
        a_gains = tl.load(a_gain + i, mask=inside, other=0.0).to(tl.float32)
    if A_FACTOR:
        by_a = load_factor(a_factor + i, inside)
    if B_FACTOR:
        by_b = load_factor(b_factor + i, inside)
    for m in range(program, rows, count):
        row = tl.cast(m, tl.int64) * width
        left = tl.load(a + row + i, mask=inside, other=0.0).to(tl.float32)
        right = _load_right(b, b_rows, b_scale, m, width, i, inside, REPEAT)
        du = tl.load(dz + row + i, mask=inside, other=0.0).to(tl.float32)
        u_inverse = tl.load(inverses + rows + m)
        raw_left, raw_right = left, right
        if A_FACTOR:
            left *= by_a
        if B_FACTOR:
            right *= by_b
        if IS_GLU:
            gate = tl.sigmoid(left)
            opened = left * gate
            slope = gate * (1.0 + left * (1.0 - gate))
            unit = opened * right * u_inverse
        else:
            a_inverse = tl.load(inverses + m)
            gate = tl.sigmoid(right)
            opened = right * gate
            slope = gate * (1.0 + right * (1.0 - gate))
            a_unit = left * a_inverse
            normed = a_unit * a_gains
            unit = normed * opened * u_inverse
        gain_sums += du * unit
        du *= gains
        du = (du - unit * (tl.sum(du * unit) / width)) * u_inverse
        if IS_GLU:
            d_left, d_right = du * right * slope, du * opened
        else:
            d_right = du * normed * slope
            du *= opened
            inner_sums += du * a_unit
            du *= a_gains
            d_left = (du - a_unit * (tl.sum(du * a_unit) / width)) * a_inverse
        if A_FACTOR:
            if SUMS:
                a_sums += d_left * raw_left
            d_left *= by_a
        if B_FACTOR:
            if SUMS:
                b_sums += d_right * raw_right
            d_right *= by_b
        tl.store(da + row + i, d_left.to(da.dtype.element_ty), mask=inside)
        tl.store(db + row + i, d_right.to(db.dtype.element_ty), mask=inside)
    place = sums + program * width + i
    step = tl.cast(count, tl.int64) * width
    tl.store(place, gain_sums, mask=inside)
    if not IS_GLU:
        place += step
        tl.store(place, inner_sums, mask=inside)
    if A_FACTOR and SUMS:
        place += step
        tl.store(place, a_sums, mask=inside)
    if B_FACTOR and SUMS:
        place += step
        tl.store(place, b_sums, mask=inside)


@triton.jit
def _fold_kernel(x, out, rows, width, b_scale, REPEAT: tl.constexpr, TERMS: tl.constexpr, ROWS: tl.constexpr):
    """Store b_scale times the sums of what stands REPEAT channels apart, for some rows."""
    m = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)[:, None]
    k = tl.arange(0, REPEAT)[None, :]
    sums = tl.zeros([ROWS, REPEAT], tl.float32)
    for t in tl.static_range(TERMS):
        i = t * REPEAT + k
        sums += tl.load(x + m * width + i, mask=(m < rows) & (i < width), other=0.0).to(tl.float32)
    tl.store(out + m * REPEAT + k, (sums * b_scale).to(out.dtype.element_ty), mask=m < rows)


def _fold(x: Tensor, repeat: int, scale: float) -> Tensor:
    """Return the gradient of tokens that are repeated, from that of the repetitions."""
    width = x.shape[-1]
    rows = x.numel() // width
    out = torch.empty(*x.shape[:-1], repeat, dtype=x.dtype, device=x.device)
    tile = max(_FOLDED // repeat, 1)
    sizes = {"REPEAT": repeat, "TERMS": triton.cdiv(width, repeat), "ROWS": tile}
    _fold_kernel[(triton.cdiv(rows, tile),)](x, out, rows, width, scale, **sizes, num_warps=4)
    return out


def forward(
    a: Tensor,
    b: Tensor,
    a_gain_D: Tensor | None,
    gain_D: Tensor,
    eps: float,
    a_factor_D: Tensor | None = None,
    b_factor_D: Tensor | None = None,
    repeated: tuple[Tensor, float] | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return codes, scale, and one over the root mean squares of both norms, (2, rows).

    repeated: b are codes of fewer channels, a power of two, that are repeated; the scale of each row, and of all.
    """
    width = a.shape[-1]
    rows = a.numel() // width
    codes = torch.empty(a.shape, dtype=torch.int8, device=a.device)
    scale = torch.empty(*a.shape[:-1], 1, dtype=torch.float32, device=a.device)
    inverses = torch.empty(2, rows, device=a.device)
    block = triton.next_power_of_2(width)
    _forward_kernel[(rows,)](
        *(*_inputs(a, b, repeated, a_factor_D, b_factor_D, a_gain_D), gain_D, codes, scale, inverses, rows, width, eps),
        REPEAT=0 if repeated is None else b.shape[-1],
        **_flags(a_factor_D, b_factor_D, a_gain_D),
        BLOCK=block,
        num_warps=forward_warps(block, _FORWARD, rows),
        **early(rows, a.device),
    )
    return codes, scale, inverses


def backward(
    a: Tensor,
    b: Tensor,
    a_gain_D: Tensor | None,
    gain_D: Tensor,
    inverses: Tensor,
    dz: Tensor,
    a_factor_D: Tensor | None = None,
    b_factor_D: Tensor | None = None,
    repeated: tuple[Tensor, float] | None = None,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor, Tensor | None, Tensor | None]:
    """Return the gradients of a, b (or the tokens that are repeated), both gains and both factors."""
    rows, width = inverses.shape[1], a.shape[-1]
    block = triton.next_power_of_2(width)
    factors = (a_factor_D, b_factor_D)
    has_factors = any(factor is not None for factor in factors)
    # A thread has no registers for more sums over so many channels: they take a pass of their own.
    are_summed = block <= _MOST_SUMMED
    channels = _glu_channels(block, has_factors) if a_gain_D is None else _READOUT
    warps = num_warps(block, channels)
    programs = num_programs(a, rows, warps)
    da, db = torch.empty_like(a), torch.empty_like(a)
    vectors = [gain_D, a_gain_D, *(factors if are_summed else ())]
    there_are = [vector is not None for vector in vectors]
    sums = torch.empty(sum(there_are), programs, width, device=a.device)
    _backward_kernel[(programs,)](
        *(*_inputs(a, b, repeated, a_factor_D, b_factor_D, a_gain_D), gain_D, inverses, dz, da, db, sums, rows, width),
        REPEAT=0 if repeated is None else b.shape[-1],
        **_flags(a_factor_D, b_factor_D, a_gain_D),
        BLOCK=block,
        SUMS=are_summed,
        num_warps=warps,
    )
    summed = iter(column_sums(sums, gain_D.dtype).unbind(0))
    dgain_D, da_gain_D, *dfactors = (next(summed) if is_there else None for is_there in there_are)
    assert dgain_D is not None
    if not are_summed:
        right = b if repeated is None else _repeat(b, a, *repeated)
        pairs = zip((da, db), (a, right), factors, strict=True)
        dfactors = [None if by is None else gain_gradient(_rows(dx), _rows(x), by) for dx, x, by in pairs]
    if repeated is not None:
        db = _fold(db, b.shape[-1], repeated[1])
    return da, db, da_gain_D, dgain_D, dfactors[0], dfactors[1]


def _repeat(codes: Tensor, like: Tensor, rows: Tensor, scale: float) -> Tensor:
    """Return tokens that are repeated, written out."""
    once = _rows((codes * (rows * scale)).to(like.dtype))
    return IdentityMap((like.shape[-1], codes.shape[-1])).times(once).contiguous()


def _rows(x: Tensor) -> Tensor:
    return x.view(-1, x.shape[-1])


def _inputs(
    a: Tensor, b: Tensor, repeated: tuple[Tensor, float] | None, *vectors: Tensor | None
) -> list[Tensor | float]:
    """Return what both kernels read, something else where there is nothing."""
    return [a, b, *(repeated or (a, 1.0)), *(a if vector is None else vector for vector in vectors)]


def _flags(a_factor_D: Tensor | None, b_factor_D: Tensor | None, a_gain_D: Tensor | None) -> dict[str, bool]:
    return {"A_FACTOR": a_factor_D is not None, "B_FACTOR": b_factor_D is not None, "IS_GLU": a_gain_D is None}
