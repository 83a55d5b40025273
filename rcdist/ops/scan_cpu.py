"""The MLGRU recurrence with its gates as one compiled loop."""

import torch
from torch import Tensor

from rcdist.ops.native import call


def forward(
    constant: float,
    pf: Tensor | None,
    pc: Tensor,
    gamma: Tensor | None,
    h0: Tensor | None,
    starts: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Return the states, and the last one in float32."""
    batch, time, width = pc.shape
    h, last = torch.empty_like(pc), torch.empty(batch, width)
    call("scan_forward", pc, pf, pc, width, constant, gamma, h0, starts, h, last, batch, time, width)
    return h, last


def backward(
    constant: float,
    pf: Tensor | None,
    pc: Tensor,
    gamma: Tensor | None,
    h0: Tensor | None,
    starts: Tensor | None,
    h: Tensor,
    dh: Tensor | None,
    dlast: Tensor | None,
) -> tuple[Tensor | None, Tensor, Tensor, Tensor | None]:
    """Return the gradients of pf, pc, gamma and h0."""
    batch, time, width = pc.shape
    dh = None if dh is None else dh.contiguous()
    dlast = None if dlast is None else dlast.contiguous()
    dpf, dpc = None if pf is None else torch.empty_like(pf), torch.empty_like(pc)
    dgamma = torch.empty(batch, width)
    dh0 = None if h0 is None else torch.empty_like(h0)
    call(
        "scan_backward",
        pc,
        *(pf, pc, width, constant, gamma, h0, starts, h, dh, dlast, dpf, dpc, width, dgamma, dh0),
        *(batch, time, width),
    )
    return dpf, dpc, dgamma.sum(0), dh0
