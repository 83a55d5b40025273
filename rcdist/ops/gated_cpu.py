"""Readout and GLU as one compiled pass each."""

import torch
from torch import Tensor

from rcdist.ops.native import call


def forward(a: Tensor, b: Tensor, a_gain_D: Tensor | None, gain_D: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return codes, scale, and one over the root mean squares of both norms, (2, rows)."""
    width = a.shape[-1]
    rows = a.numel() // width
    codes, scale = torch.empty(a.shape, dtype=torch.int8), torch.empty(*a.shape[:-1], 1, dtype=torch.float32)
    inverses = torch.empty(2, rows)
    gains = _wide(a_gain_D), gain_D.float().contiguous()
    call(
        "gated_forward",
        a,
        *(a_gain_D is None, a, width, b, width, *gains, eps),
        *(codes, scale, inverses[0], inverses[1], rows, width),
    )
    return codes, scale, inverses


def backward(
    a: Tensor, b: Tensor, a_gain_D: Tensor | None, gain_D: Tensor, inverses: Tensor, dz: Tensor
) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
    """Return the gradients of a, b and both gains."""
    rows, width = inverses.shape[1], a.shape[-1]
    da, db = torch.empty_like(a), torch.empty_like(b)
    da_gain, du_gain = torch.zeros(2, torch.get_num_threads(), width)
    gains = _wide(a_gain_D), gain_D.float().contiguous()
    call(
        "gated_backward",
        a,
        *(a_gain_D is None, a, width, b, width, *gains, inverses[0], inverses[1], dz),
        *(da, width, db, width, da_gain, du_gain, rows, width),
    )
    da_gain_D = None if a_gain_D is None else da_gain.sum(0).to(a_gain_D.dtype)
    return da, db, da_gain_D, du_gain.sum(0).to(gain_D.dtype)


def _wide(gain_D: Tensor | None) -> Tensor | None:
    return None if gain_D is None else gain_D.float().contiguous()
