"""Rounding of a trained matrix to ternary as one compiled pass."""

import torch
from torch import Tensor

from rcdist.ops.native import call
from rcdist.ops.quantise import Quantised


def forward(weight_NK: Tensor, out: Quantised | None = None) -> Quantised:
    """Compute `ops.quantise.quantise_weight` on a CPU; out: of an earlier call, to be written over."""
    weight = weight_NK.detach().contiguous()
    codes, beta = torch.empty(weight.shape, dtype=torch.int8), torch.empty(())
    call("quantise_weight", weight, weight, codes, None, beta, weight.numel())
    if out is None:
        return Quantised(weight_NK, codes, beta)
    assert out.scale is not None
    # By torch, which counts the change: until then `ops.int8_matmul` keeps the matrix as it has packed it.
    out.values.copy_(codes)
    out.scale.copy_(beta)
    return out
