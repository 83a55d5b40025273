"""Residual add, RMSNorm and int8 rounding as one compiled pass."""

import torch
from torch import Tensor

from rcdist.ops.native import call


def forward(x: Tensor, delta: Tensor | None, gain_D: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return x + delta, the codes, their scale, and one over the root mean square of each vector."""
    rows, width = x.numel() // x.shape[-1], x.shape[-1]
    x = x.contiguous()
    delta = None if delta is None else delta.contiguous()
    x_new = x if delta is None else torch.empty_like(x)
    codes = torch.empty(x.shape, dtype=torch.int8)
    scale = torch.empty(*x.shape[:-1], 1, dtype=torch.float32)
    inverse = torch.empty(rows, dtype=torch.float32)
    gain = gain_D.float().contiguous()
    call("add_norm_quantise", x, x, delta, x_new, gain, eps, codes, scale, inverse, rows, width)
    return x_new, codes, scale, inverse


def backward(x: Tensor, gain_D: Tensor, inverse: Tensor, dz: Tensor, dx_new: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return the gradients of x and of the gain."""
    rows, width = inverse.numel(), x.shape[-1]
    dx_new = None if dx_new is None else dx_new.contiguous()
    dx = torch.empty_like(x)
    dgain = torch.zeros(torch.get_num_threads(), width)
    gain = gain_D.float().contiguous()
    call("add_norm_backward", x, x, gain, inverse, dz.contiguous(), dx_new, dx, dgain, rows, width)
    return dx, dgain.sum(0).to(gain_D.dtype)
