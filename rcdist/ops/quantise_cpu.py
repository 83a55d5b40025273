"""Rounding of a trained matrix to ternary as one compiled pass."""

import torch
from torch import Tensor

from rcdist.ops.native import call
from rcdist.ops.quantise import Quantised


def quantise_weight_cpu(weight_NK: Tensor) -> Quantised:
    """Compute `ops.quantise.quantise_weight` on a CPU."""
    weight = weight_NK.detach().contiguous()
    codes, beta = torch.empty(weight.shape, dtype=torch.int8), torch.empty(())
    call("quantise_weight", weight, weight, codes, None, beta, weight.numel())
    return Quantised(weight_NK, codes, beta)
