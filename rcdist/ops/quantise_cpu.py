"""Rounding of a trained matrix to ternary as one compiled pass."""

import torch
from torch import Tensor

from rcdist.ops.native import call
from rcdist.ops.quantise import Quantised


def forward(weight_NK: Tensor, out: Quantised | None = None) -> Quantised:
    """Compute `ops.quantise.quantise_weight` on a CPU; out: of an earlier call, to be written over."""
    weight = weight_NK.detach().contiguous()
    if out is None:
        out = Quantised(weight_NK, torch.empty(weight.shape, dtype=torch.int8), torch.empty(()))
    call("quantise_weight", weight, weight, out.values, None, out.scale, weight.numel())
    return out
