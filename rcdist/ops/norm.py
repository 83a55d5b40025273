"""RMSNorm, computed in float32 whatever the dtype of its input; alone, and with residual add and int8 rounding."""

# Shapes: D width of the last dimension, ... any leading dimensions.

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from rcdist.ops.autograd import apply, hollow
from rcdist.ops.backend import backend_of, twin_of
from rcdist.ops.quantise import Quantised, Rounding, quantise_tokens


def add_norm_quantise(
    x: Tensor, delta: Tensor | None, gain_D: Tensor, eps: float, rounding: Rounding = "nearest"
) -> tuple[Tensor, Quantised]:
    """Add to the residual stream, and normalise and round the sum for the products that read it.

    x' = x + delta;  z = Q8(RMSNorm(x') * gain)

    Args:
        x: (..., D), any float dtype.
        delta: like x. None: nothing is added.
        gain_D: one gain per channel.
        eps: added to the mean square.
        rounding: identity passes z through exactly.

    Returns:
        x' (x itself without delta) and z. With a fused backend the handle of z holds no values, only its gradient.

    Cost: fused, one read of x and delta, one write of x' and of one byte per element; the reference writes the sum, the
    norm and two intermediate tensors. Saved for backward: x' and one number per vector.
    """
    twin = twin_of("norm", x) if rounding == "nearest" else None
    if twin is None:
        x = x if delta is None else x + delta
        return x, quantise_tokens(rms_norm(x, gain_D, eps), rounding)
    *new, handle, codes, scale = apply(_AddNormQuantise, twin, x, delta, gain_D, eps)
    return new[0] if new else x, Quantised(handle, codes, scale)


class _AddNormQuantise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, twin: Any, x: Tensor, delta: Tensor | None, gain_D: Tensor, eps: float) -> tuple[Tensor, ...]:
        x_new, codes, scale, inverse = twin.forward(x, delta, gain_D, eps)
        ctx.twin, ctx.has_delta = twin, delta is not None
        ctx.save_for_backward(x_new, gain_D, inverse)
        ctx.mark_non_differentiable(codes, scale)
        ctx.set_materialize_grads(False)
        return *((x_new,) if ctx.has_delta else ()), hollow(x_new), codes, scale

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        dx_new, dz = gradients[0] if ctx.has_delta else None, gradients[-3]
        if dz is None:
            return None, dx_new, dx_new, None, None
        dx, dgain_D = ctx.twin.backward(*ctx.saved_tensors, dz, dx_new)
        return None, dx, dx if ctx.has_delta else None, dgain_D, None


def add_norms_quantise(
    x: Tensor,
    delta: Tensor | None,
    gain_D: Tensor,
    gains: Sequence[Tensor],
    eps: float,
    rounding: Rounding = "nearest",
) -> tuple[Tensor, list[Quantised]]:
    """Add to the residual stream, normalise the sum, and normalise and round that again for each of several products.

    x' = x + delta;  u = RMSNorm(x') * gain;  z_i = Q8(RMSNorm(u) * gains_i)

    Args:
        x: (..., D), any float dtype.
        delta: like x. None: nothing is added.
        gain_D: of the first norm.
        gains: of the second norms, one gain per channel each.
        eps: added to every mean square.
        rounding: identity passes each z through exactly.

    Returns:
        x' (x itself without delta) and each z, as `add_norm_quantise`.

    Cost: fused (Triton, up to four z), x and delta are read once, x' and one byte per element and z are written, and u
    never is; else u is written, and read once for each z.
    """
    if rounding == "nearest" and backend_of(x) == "triton" and len(gains) <= _MOST_FUSED:
        codes, scale, *rest = apply(_AddNormsQuantise, x, delta, gain_D, eps, *gains)
        handles, new = rest[: len(gains)], rest[len(gains) :]
        return new[0] if new else x, [Quantised(*z) for z in zip(handles, codes, scale, strict=True)]
    x = x if delta is None else x + delta
    u = rms_norm(x, gain_D, eps)
    return x, [add_norm_quantise(u, None, gain, eps, rounding)[1] for gain in gains]


_MOST_FUSED = 4
"""What the kernel has arguments for: f, c, g and an inserted reservoir."""


class _AddNormsQuantise(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, delta: Tensor | None, gain_D: Tensor, eps: float, *gains: Tensor
    ) -> tuple[Tensor, ...]:
        from rcdist.ops import norms_triton

        gains_ND = torch.stack(gains)
        x_new, codes, scale, inverses = norms_triton.forward(x, delta, gain_D, gains_ND, eps)
        ctx.has_delta, ctx.num = delta is not None, len(gains)
        ctx.save_for_backward(x_new, gain_D, gains_ND, inverses)
        ctx.mark_non_differentiable(codes, scale)
        ctx.set_materialize_grads(False)
        return codes, scale, *(hollow(x_new) for _ in gains), *((x_new,) if ctx.has_delta else ())

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        from rcdist.ops import norms_triton

        x_new, gain_D, gains_ND, inverses = ctx.saved_tensors
        dz, dx_new = gradients[2 : 2 + ctx.num], gradients[-1] if ctx.has_delta else None
        if all(gradient is None for gradient in dz):
            return dx_new, dx_new if ctx.has_delta else None, *[None] * (2 + ctx.num)
        whole = [torch.zeros_like(x_new) if gradient is None else gradient for gradient in dz]
        dx, dgains = norms_triton.backward(x_new, gain_D, gains_ND, inverses, whole, dx_new)
        dgain_D, *rest = dgains.unbind(0)
        return dx, dx if ctx.has_delta else None, dgain_D, None, *rest


def rms_norm(x: Tensor, gain_D: Tensor, eps: float) -> Tensor:
    """Divide each vector by its root mean square and multiply by a gain.

    y = x / sqrt(mean(x^2) + eps) * gain

    Args:
        x: (..., D), any float dtype.
        gain_D: one gain per channel.
        eps: added to the mean square, > 0.

    Returns:
        (..., D) in the dtype of x; computed in float32 (float64 for float64 input).

    Cost: about 4 FLOPs per element forward, 8 backward. Saved for backward: x and one number per vector.
    Zhang and Sennrich 2019, arXiv:1910.07467, equation 4.
    """
    y: Tensor = _RMSNorm.apply(x, gain_D, eps)
    return y


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, gain_D: Tensor, eps: float) -> Tensor:
        wide = _wide(x)
        inverse_rms = (
            torch.linalg.vector_norm(wide, dim=-1, keepdim=True).square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        )
        ctx.save_for_backward(x, gain_D, inverse_rms)
        return (wide * inverse_rms).mul_(gain_D).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, gain_D, inverse_rms = ctx.saved_tensors
        unit = _wide(x) * inverse_rms
        dy = _wide(dy)
        product = dy * unit
        dgain_D = dx = None
        if ctx.needs_input_grad[1]:
            dgain_D = product.reshape(-1, x.shape[-1]).sum(0).to(gain_D.dtype)
        if ctx.needs_input_grad[0]:
            # d unit / d x is (1 - unit unit^T / D) / rms: take the gradient's part along the vector out.
            along = (product @ _wide(gain_D)).div_(-x.shape[-1]).unsqueeze(-1)
            dx = torch.addcmul(dy * gain_D, unit, along, out=product).mul_(inverse_rms).to(x.dtype)
        return dx, dgain_D, None
