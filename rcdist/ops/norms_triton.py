"""Residual add, one RMSNorm, and then several norms with int8 rounding of its result, as one Triton kernel per direction."""

# Shapes: one program holds whole rows of D channels; M rows; N norms behind the first.

import torch
import triton
import triton.language as tl
from torch import Tensor

from rcdist.ops.triton_common import (
    column_sums,
    early,
    forward_warps,
    load_sum,
    num_programs,
    num_warps,
    store_rounded,
    wait_for_inputs,
)

MOST_NORMS = 4
"""Norms behind the first that a kernel has arguments for: f, c, g and an inserted reservoir."""

_FORWARD, _BACKWARD = 32, 8
"""Channels a thread; the fastest of 4, 8, 16 and 32 on an H100."""


@triton.jit
def _forward_kernel(
    x, delta, x_new, gain, gains, codes, scale, inverses, rows, width, eps,
    HAS_DELTA: tl.constexpr, NUM: tl.constexpr, EARLY: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    wait_for_inputs(EARLY)
    m = tl.program_id(0).to(tl.int64)
    i = tl.arange(0, BLOCK)
    inside = i < width
    at = m * width
    value = load_sum(x + at, delta + at, x_new + at, i, inside, HAS_DELTA)
    first = 1.0 / tl.sqrt(tl.sum(value * value) / width + eps)
    u = value * first * tl.load(gain + i, mask=inside, other=0.0).to(tl.float32)
    second = 1.0 / tl.sqrt(tl.sum(u * u) / width + eps)
    tl.store(inverses + m, first)
    tl.store(inverses + rows + m, second)
    for n in tl.static_range(NUM):
        z = u * second * tl.load(gains + n * width + i, mask=inside, other=0.0).to(tl.float32)
        store_rounded(z, codes + (n * rows + m) * width, scale + n * rows + m, i, inside)


@triton.jit
def _backward_kernel(
    x, gain, gains, inverses, dz0, dz1, dz2, dz3, dx_new, dx, dgains, rows, width,
    HAS_DX: tl.constexpr, NUM: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    program, count = tl.program_id(0), tl.num_programs(0)
    i = tl.arange(0, BLOCK)
    inside = i < width
    first_gain = tl.load(gain + i, mask=inside, other=0.0).to(tl.float32)
    sums, sums0, sums1 = tl.zeros([BLOCK], tl.float32), tl.zeros([BLOCK], tl.float32), tl.zeros([BLOCK], tl.float32)
    sums2, sums3 = tl.zeros([BLOCK], tl.float32), tl.zeros([BLOCK], tl.float32)
    for m in range(program, rows, count):
        row = tl.cast(m, tl.int64) * width
        first, second = tl.load(inverses + m), tl.load(inverses + rows + m)
        unit = tl.load(x + row + i, mask=inside, other=0.0).to(tl.float32) * first
        v = unit * first_gain * second
        dz = tl.load(dz0 + row + i, mask=inside, other=0.0).to(tl.float32)
        sums0 += dz * v
        dv = dz * tl.load(gains + i, mask=inside, other=0.0).to(tl.float32)
        if NUM > 1:
            dz = tl.load(dz1 + row + i, mask=inside, other=0.0).to(tl.float32)
            sums1 += dz * v
            dv += dz * tl.load(gains + width + i, mask=inside, other=0.0).to(tl.float32)
        if NUM > 2:
            dz = tl.load(dz2 + row + i, mask=inside, other=0.0).to(tl.float32)
            sums2 += dz * v
            dv += dz * tl.load(gains + 2 * width + i, mask=inside, other=0.0).to(tl.float32)
        if NUM > 3:
            dz = tl.load(dz3 + row + i, mask=inside, other=0.0).to(tl.float32)
            sums3 += dz * v
            dv += dz * tl.load(gains + 3 * width + i, mask=inside, other=0.0).to(tl.float32)
        du = (dv - v * (tl.sum(dv * v) / width)) * second
        sums += du * unit
        du *= first_gain
        value = (du - unit * (tl.sum(du * unit) / width)) * first
        if HAS_DX:
            value += tl.load(dx_new + row + i, mask=inside, other=0.0).to(tl.float32)
        tl.store(dx + row + i, value.to(dx.dtype.element_ty), mask=inside)
    part = count.to(tl.int64) * width
    place = dgains + program * width + i
    tl.store(place, sums, mask=inside)
    tl.store(place + part, sums0, mask=inside)
    if NUM > 1:
        tl.store(place + 2 * part, sums1, mask=inside)
    if NUM > 2:
        tl.store(place + 3 * part, sums2, mask=inside)
    if NUM > 3:
        tl.store(place + 4 * part, sums3, mask=inside)


def forward(
    x: Tensor, delta: Tensor | None, gain_D: Tensor, gains_ND: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return x + delta; for each norm codes, (N, ..., D), and scales, (N, ..., 1); 1 / rms of both norms, (2, M)."""
    width, num = x.shape[-1], len(gains_ND)
    rows = x.numel() // width
    x = x.contiguous()
    x_new = x if delta is None else torch.empty_like(x)
    codes = torch.empty(num, *x.shape, dtype=torch.int8, device=x.device)
    scale = torch.empty(num, *x.shape[:-1], 1, device=x.device)
    inverses = torch.empty(2, rows, device=x.device)
    block = triton.next_power_of_2(width)
    _forward_kernel[(rows,)](
        *(x, x if delta is None else delta.contiguous(), x_new, gain_D, gains_ND, codes, scale, inverses),
        *(rows, width, eps),
        HAS_DELTA=delta is not None,
        NUM=num,
        BLOCK=block,
        num_warps=forward_warps(block, _FORWARD, rows),
        **early(rows, x.device),
    )
    return x_new, codes, scale, inverses


def backward(
    x: Tensor, gain_D: Tensor, gains_ND: Tensor, inverses: Tensor, dz: list[Tensor], dx_new: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Return the gradients of x, and of all gains, (1 + N, D), the first norm's first."""
    rows, width, num = inverses.shape[1], x.shape[-1], len(gains_ND)
    block = triton.next_power_of_2(width)
    warps = num_warps(block, _BACKWARD)
    programs = num_programs(x, rows, warps)
    dx, dgains = torch.empty_like(x), torch.empty(1 + num, programs, width, device=x.device)
    dz = [gradient.contiguous() for gradient in dz]
    _backward_kernel[(programs,)](
        *(x, gain_D, gains_ND, inverses, *dz, *[dz[0]] * (MOST_NORMS - num)),
        *(x if dx_new is None else dx_new.contiguous(), dx, dgains, rows, width),
        HAS_DX=dx_new is not None,
        NUM=num,
        BLOCK=block,
        num_warps=warps,
    )
    return dx, column_sums(dgains, gain_D.dtype)
