"""Readout and GLU as one Triton kernel per direction."""

# Shapes: one program holds whole rows of D channels; M rows.

import torch
import triton
import triton.language as tl
from torch import Tensor

from rcdist.ops.triton_common import column_sums, num_programs, num_warps, store_rounded

_FORWARD, _READOUT = 32, 8
"""Channels a thread, forward and in the readout's backward pass; the fastest of 4, 8, 16 and 32 on an H100."""


def _glu_channels(block: int) -> int:
    """Return channels a thread in the GLU's backward pass, the fastest likewise at widths 2816 and 5632."""
    return 32 if block <= 4096 else 16


@triton.jit
def _forward_kernel(
    a, b, a_gain, gain, codes, scale, inverses, rows, width, eps, IS_GLU: tl.constexpr, BLOCK: tl.constexpr
):
    m = tl.program_id(0)
    row = m.to(tl.int64) * width
    i = tl.arange(0, BLOCK)
    inside = i < width
    left = tl.load(a + row + i, mask=inside, other=0.0).to(tl.float32)
    right = tl.load(b + row + i, mask=inside, other=0.0).to(tl.float32)
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
    a, b, a_gain, gain, inverses, dz, da, db, da_gain, dgain, rows, width, IS_GLU: tl.constexpr, BLOCK: tl.constexpr
):
    program, count = tl.program_id(0), tl.num_programs(0)
    i = tl.arange(0, BLOCK)
    inside = i < width
    gains = tl.load(gain + i, mask=inside, other=0.0).to(tl.float32)
    sums, a_sums = tl.zeros([BLOCK], tl.float32), tl.zeros([BLOCK], tl.float32)
    if not IS_GLU:
        a_gains = tl.load(a_gain + i, mask=inside, other=0.0).to(tl.float32)
    for m in range(program, rows, count):
        row = tl.cast(m, tl.int64) * width
        left = tl.load(a + row + i, mask=inside, other=0.0).to(tl.float32)
        right = tl.load(b + row + i, mask=inside, other=0.0).to(tl.float32)
        du = tl.load(dz + row + i, mask=inside, other=0.0).to(tl.float32)
        u_inverse = tl.load(inverses + rows + m)
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
        sums += du * unit
        du *= gains
        du = (du - unit * (tl.sum(du * unit) / width)) * u_inverse
        if IS_GLU:
            tl.store(da + row + i, (du * right * slope).to(da.dtype.element_ty), mask=inside)
            tl.store(db + row + i, (du * opened).to(db.dtype.element_ty), mask=inside)
        else:
            tl.store(db + row + i, (du * normed * slope).to(db.dtype.element_ty), mask=inside)
            du *= opened
            a_sums += du * a_unit
            du *= a_gains
            du = (du - a_unit * (tl.sum(du * a_unit) / width)) * a_inverse
            tl.store(da + row + i, du.to(da.dtype.element_ty), mask=inside)
    tl.store(dgain + program * width + i, sums, mask=inside)
    if not IS_GLU:
        tl.store(da_gain + program * width + i, a_sums, mask=inside)


def forward(a: Tensor, b: Tensor, a_gain_D: Tensor | None, gain_D: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return codes, scale, and one over the root mean squares of both norms, (2, rows)."""
    width = a.shape[-1]
    rows = a.numel() // width
    codes = torch.empty(a.shape, dtype=torch.int8, device=a.device)
    scale = torch.empty(*a.shape[:-1], 1, dtype=torch.float32, device=a.device)
    inverses = torch.empty(2, rows, device=a.device)
    block = triton.next_power_of_2(width)
    _forward_kernel[(rows,)](
        *(a, b, gain_D if a_gain_D is None else a_gain_D, gain_D, codes, scale, inverses, rows, width, eps),
        IS_GLU=a_gain_D is None,
        BLOCK=block,
        num_warps=num_warps(block, _FORWARD),
    )
    return codes, scale, inverses


def backward(
    a: Tensor, b: Tensor, a_gain_D: Tensor | None, gain_D: Tensor, inverses: Tensor, dz: Tensor
) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
    """Return the gradients of a, b and both gains."""
    rows, width = inverses.shape[1], a.shape[-1]
    block, is_glu = triton.next_power_of_2(width), a_gain_D is None
    warps = num_warps(block, _glu_channels(block) if is_glu else _READOUT)
    programs = num_programs(a, rows, warps)
    da, db = torch.empty_like(a), torch.empty_like(b)
    dgains = torch.empty(1 if is_glu else 2, programs, width, device=a.device)
    _backward_kernel[(programs,)](
        *(a, b, gain_D if a_gain_D is None else a_gain_D, gain_D, inverses, dz, da, db, dgains[-1], dgains[0]),
        *(rows, width),
        IS_GLU=is_glu,
        BLOCK=block,
        num_warps=warps,
    )
    dgain_D, *da_gain_D = column_sums(dgains, gain_D.dtype).unbind(0)
    return da, db, da_gain_D[0] if da_gain_D else None, dgain_D
