"""The MLGRU recurrence with its gates as one compiled loop."""

from typing import Any

import torch
from torch import Tensor

from rcdist.ops.autograd import apply
from rcdist.ops.native import call


def gated_scan_cpu(
    pf_BTH: Tensor | float,
    pc_BTH: Tensor,
    gamma_H: Tensor | None,
    h0_BH: Tensor | None,
    starts_BT: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Compute `ops.scan.gated_scan` on a CPU."""
    pf, constant = (pf_BTH, 0.0) if isinstance(pf_BTH, Tensor) else (None, pf_BTH)
    h_BTH, last_BH = apply(_GatedScan, pf, pc_BTH, gamma_H, h0_BH, starts_BT, constant)
    return h_BTH, last_BH


class _GatedScan(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        pf_BTH: Tensor | None,
        pc_BTH: Tensor,
        gamma_H: Tensor | None,
        h0_BH: Tensor | None,
        starts_BT: Tensor | None,
        constant: float,
    ) -> tuple[Tensor, Tensor]:
        pf, pc = None if pf_BTH is None else pf_BTH.contiguous(), pc_BTH.contiguous()
        gamma = None if gamma_H is None else gamma_H.float().contiguous()
        h0 = None if h0_BH is None else h0_BH.float().contiguous()
        starts = None if starts_BT is None else starts_BT.contiguous()
        batch, time, width = pc.shape
        h, last = torch.empty_like(pc), torch.empty(batch, width)
        call("scan_forward", pc, pf, pc, width, constant, gamma, h0, starts, h, last, batch, time, width)
        ctx.constant = constant
        ctx.save_for_backward(pf, pc, gamma, h0, starts, h)
        ctx.dtypes = tuple(None if x is None else x.dtype for x in (gamma_H, h0_BH))
        ctx.set_materialize_grads(False)
        return h, last

    @staticmethod
    def backward(ctx: Any, dh: Tensor | None, dlast: Tensor | None) -> tuple[Tensor | None, ...]:
        pf, pc, gamma, h0, starts, h = ctx.saved_tensors
        batch, time, width = pc.shape
        dh = None if dh is None else dh.contiguous()
        dlast = None if dlast is None else dlast.contiguous()
        dpf, dpc = None if pf is None else torch.empty_like(pf), torch.empty_like(pc)
        dgamma = torch.empty(batch, width)
        dh0 = None if h0 is None else torch.empty_like(h0)
        call(
            "scan_backward",
            pc,
            *(pf, pc, width, ctx.constant, gamma, h0, starts, h, dh, dlast, dpf, dpc, width, dgamma, dh0),
            *(batch, time, width),
        )
        gamma_dtype, h0_dtype = ctx.dtypes
        dgamma_H = None if gamma_dtype is None else dgamma.sum(0).to(gamma_dtype)
        return dpf, dpc, dgamma_H, None if dh0 is None else dh0.to(h0_dtype), None, None
