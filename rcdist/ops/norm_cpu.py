"""Residual add, RMSNorm and int8 rounding as one compiled pass."""

from typing import Any

import torch
from torch import Tensor

from rcdist.ops.autograd import apply
from rcdist.ops.native import call
from rcdist.ops.quantise import Quantised


def add_norm_quantise_cpu(x: Tensor, delta: Tensor | None, gain_D: Tensor, eps: float) -> tuple[Tensor, Quantised]:
    """Compute `ops.norm.add_norm_quantise` on a CPU."""
    if delta is None:
        handle, codes, scale = apply(_NormQuantise, x, gain_D, eps)
        return x, Quantised(handle, codes, scale)
    x, handle, codes, scale = apply(_AddNormQuantise, x, delta, gain_D, eps)
    return x, Quantised(handle, codes, scale)


def hollow(like: Tensor) -> Tensor:
    """Return a tensor of the shape and dtype that holds one element: it only carries a gradient."""
    return like.new_zeros(1).expand(like.shape)


def _forward(x: Tensor, delta: Tensor | None, gain_D: Tensor, eps: float) -> tuple[Tensor, ...]:
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


def _backward(ctx: Any, dz: Tensor, dx_new: Tensor | None) -> tuple[Tensor, Tensor]:
    x, gain_D, inverse = ctx.saved_tensors
    rows, width = inverse.numel(), x.shape[-1]
    dz = dz.contiguous()
    dx_new = None if dx_new is None else dx_new.contiguous()
    dx = torch.empty_like(x)
    dgain = torch.zeros(torch.get_num_threads(), width)
    gain = gain_D.float().contiguous()
    call("add_norm_backward", x, x, gain, inverse, dz, dx_new, dx, dgain, rows, width)
    return dx, dgain.sum(0).to(gain_D.dtype)


class _AddNormQuantise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, delta: Tensor, gain_D: Tensor, eps: float) -> tuple[Tensor, ...]:
        x_new, codes, scale, inverse = _forward(x, delta, gain_D, eps)
        ctx.save_for_backward(x_new, gain_D, inverse)
        ctx.mark_non_differentiable(codes, scale)
        ctx.set_materialize_grads(False)
        return x_new, hollow(x_new), codes, scale

    @staticmethod
    def backward(ctx: Any, dx_new: Tensor | None, dz: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
        if dz is None:
            return dx_new, dx_new, None, None
        dx, dgain_D = _backward(ctx, dz, dx_new)
        return dx, dx, dgain_D, None


class _NormQuantise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, gain_D: Tensor, eps: float) -> tuple[Tensor, ...]:
        x_new, codes, scale, inverse = _forward(x, None, gain_D, eps)
        ctx.save_for_backward(x_new, gain_D, inverse)
        ctx.mark_non_differentiable(codes, scale)
        return hollow(x_new), codes, scale

    @staticmethod
    def backward(ctx: Any, dz: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        return (*_backward(ctx, dz, None), None)
