"""Readout and GLU as one compiled pass each."""

from typing import Any

import torch
from torch import Tensor

from rcdist.ops.autograd import apply
from rcdist.ops.native import call
from rcdist.ops.norm_cpu import hollow
from rcdist.ops.quantise import Quantised


def gated_quantise_cpu(
    kind: str, a: Tensor, b: Tensor, a_gain_D: Tensor | None, gain_D: Tensor, eps: float
) -> Quantised:
    """Compute `ops.gated.glu_quantise` or `readout_quantise` on a CPU."""
    return Quantised(*apply(_Gated, a, b, a_gain_D, gain_D, eps, kind == "glu"))


class _Gated(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, a: Tensor, b: Tensor, a_gain_D: Tensor | None, gain_D: Tensor, eps: float, is_glu: bool
    ) -> tuple[Tensor, ...]:
        a, b = a.contiguous(), b.contiguous()
        width = a.shape[-1]
        rows = a.numel() // width
        codes, scale = torch.empty(a.shape, dtype=torch.int8), torch.empty(*a.shape[:-1], 1, dtype=torch.float32)
        inverses = torch.empty(2, rows)
        gains = _wide(a_gain_D), gain_D.float().contiguous()
        call(
            "gated_forward",
            a,
            *(is_glu, a, width, b, width, *gains, eps),
            *(codes, scale, inverses[0], inverses[1], rows, width),
        )
        ctx.is_glu = is_glu
        ctx.save_for_backward(a, b, a_gain_D, gain_D, inverses)
        ctx.mark_non_differentiable(codes, scale)
        return hollow(a), codes, scale

    @staticmethod
    def backward(ctx: Any, dz: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        a, b, a_gain_D, gain_D, inverses = ctx.saved_tensors
        rows, width = inverses.shape[1], a.shape[-1]
        da, db = torch.empty_like(a), torch.empty_like(b)
        da_gain, du_gain = torch.zeros(2, torch.get_num_threads(), width)
        gains = _wide(a_gain_D), gain_D.float().contiguous()
        call(
            "gated_backward",
            a,
            *(ctx.is_glu, a, width, b, width, *gains, inverses[0], inverses[1], dz.contiguous()),
            *(da, width, db, width, da_gain, du_gain, rows, width),
        )
        da_gain_D = None if a_gain_D is None else da_gain.sum(0).to(a_gain_D.dtype)
        return da, db, da_gain_D, du_gain.sum(0).to(gain_D.dtype), None, None


def _wide(gain_D: Tensor | None) -> Tensor | None:
    return None if gain_D is None else gain_D.float().contiguous()
