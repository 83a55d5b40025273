"""Two vectors gated, normalised and rounded: the readout of the MLGRU and the inside of the GLU."""

# Shapes: D width of the last dimension, ... any leading dimensions.

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from rcdist.ops.autograd import apply, hollow
from rcdist.ops.backend import backend_of, twin_of
from rcdist.ops.factors import scaled, takes_factors
from rcdist.ops.norm import rms_norm
from rcdist.ops.project import Frozen, project
from rcdist.ops.quantise import Quantised, Rounding, quantise_tokens
from rcdist.ops.topology import IdentityMap


class Repeated(NamedTuple):
    """Stand for tokens that are repeated until there are enough channels: their product with an identity matrix.

    Attributes:
        tokens: (..., K); channel i of what is meant is channel i mod K.
        scale: multiplies them.
    """

    tokens: Quantised
    scale: float


def takes_repeated(x: Tensor, width: int, rounding: Rounding) -> bool:
    """Say whether the GLU's kernels read `width` channels of tokens like x again and again: Triton's, powers of two."""
    return rounding == "nearest" and backend_of(x) == "triton" and width & (width - 1) == 0


def glu_quantise(
    a: Tensor,
    b: Tensor | Repeated,
    gain_D: Tensor,
    eps: float,
    rounding: Rounding = "nearest",
    a_factor_D: Tensor | None = None,
    b_factor_D: Tensor | None = None,
) -> Quantised:
    """Return Q8(RMSNorm(SiLU(a) * b) * gain), the input of the GLU's down projection.

    Args:
        a: (..., D) pre-activation of the gate.
        b: (..., D) output of the up projection; tokens that are repeated are multiplied here if no kernel takes them.
        gain_D: gain of the norm.
        eps: added to the mean square.
        rounding: identity passes the result through exactly.
        a_factor_D: multiplies a first: the gain of a frozen matrix (see `ops.factors`). None: 1.
        b_factor_D: multiplies b first.

    Cost: fused, one read of a and b and one byte written per element. Saved for backward: a and b.
    """
    if isinstance(b, Repeated):
        tokens, scale = b
        width = tokens.values.shape[-1]
        if takes_repeated(a, width, rounding) and tokens.scale is not None and width <= a.shape[-1]:
            sources = (tokens.handle, tokens.values, tokens.scale, scale)
            twin = twin_of("gated", a)
            return Quantised(*apply(_RepeatedGLU, twin, a, *sources, gain_D, eps, a_factor_D, b_factor_D))
        (b,) = project(tokens, [Frozen(IdentityMap((a.shape[-1], width)), scale)])
    twin, a, b, factors = _prepare(a, b, rounding, a_factor_D, b_factor_D)
    if twin is not None:
        return Quantised(*apply(_GatedQuantise, twin, a, b, None, gain_D, eps, *factors))
    return quantise_tokens(rms_norm(F.silu(a) * b, gain_D, eps), rounding)


def readout_quantise(
    a: Tensor,
    b: Tensor,
    a_gain_D: Tensor,
    gain_D: Tensor,
    eps: float,
    rounding: Rounding = "nearest",
    a_factor_D: Tensor | None = None,
    b_factor_D: Tensor | None = None,
) -> Quantised:
    """Return Q8(RMSNorm(RMSNorm(a) * a_gain * SiLU(b)) * gain), the input of the MLGRU's output projection.

    Args:
        a: (..., D), normalised: the gate's pre-activation, or the states with readout_norm=state.
        b: (..., D), through SiLU: the other of the two.
        a_gain_D: gain of the first norm.
        gain_D: gain of the second norm.
        eps: added to both mean squares.
        rounding: identity passes the result through exactly.
        a_factor_D: multiplies a first.
        b_factor_D: multiplies b first.

    Cost: as `glu_quantise`.
    """
    twin, a, b, factors = _prepare(a, b, rounding, a_factor_D, b_factor_D)
    if twin is not None:
        return Quantised(*apply(_GatedQuantise, twin, a, b, a_gain_D, gain_D, eps, *factors))
    return quantise_tokens(rms_norm(rms_norm(a, a_gain_D, eps) * F.silu(b), gain_D, eps), rounding)


def _prepare(
    a: Tensor, b: Tensor, rounding: Rounding, a_factor_D: Tensor | None, b_factor_D: Tensor | None
) -> tuple[Any, Tensor, Tensor, tuple[Tensor | None, ...]]:
    """Return the twin, and factors if it takes them; else they have multiplied a and b."""
    twin = twin_of("gated", a) if rounding == "nearest" else None
    if twin is not None and takes_factors(a):
        return twin, a, b, (a_factor_D, b_factor_D)
    return twin, scaled(a, a_factor_D), scaled(b, b_factor_D), ()


class _GatedQuantise(torch.autograd.Function):
    """Without a gain of a: the inside of the GLU; with one: the readout."""

    @staticmethod
    def forward(
        ctx: Any,
        twin: Any,
        a: Tensor,
        b: Tensor,
        a_gain_D: Tensor | None,
        gain_D: Tensor,
        eps: float,
        *factors: Tensor | None,
    ) -> tuple[Tensor, ...]:
        a, b = a.contiguous(), b.contiguous()
        codes, scale, inverses = twin.forward(a, b, a_gain_D, gain_D, eps, *factors)
        ctx.twin, ctx.num_factors = twin, len(factors)
        ctx.save_for_backward(a, b, a_gain_D, gain_D, inverses, *factors)
        ctx.mark_non_differentiable(codes, scale)
        ctx.set_materialize_grads(False)
        return hollow(a), codes, scale

    @staticmethod
    def backward(ctx: Any, dz: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
        if dz is None:
            return (None,) * (6 + ctx.num_factors)
        a, b, a_gain_D, gain_D, inverses, *factors = ctx.saved_tensors
        gradients = ctx.twin.backward(a, b, a_gain_D, gain_D, inverses, dz.contiguous(), *factors)
        return None, *gradients[:4], None, *gradients[4 : 4 + ctx.num_factors]


class _RepeatedGLU(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        twin: Any,
        a: Tensor,
        handle: Tensor,
        values: Tensor,
        rows: Tensor,
        scale: float,
        gain_D: Tensor,
        eps: float,
        *factors: Tensor | None,
    ) -> tuple[Tensor, ...]:
        a = a.contiguous()
        codes, own_scale, inverses = twin.forward(a, values, None, gain_D, eps, *factors, repeated=(rows, scale))
        ctx.twin, ctx.scale = twin, scale
        ctx.save_for_backward(a, values, rows, gain_D, inverses, *factors)
        ctx.mark_non_differentiable(codes, own_scale)
        ctx.set_materialize_grads(False)
        return hollow(a), codes, own_scale

    @staticmethod
    def backward(ctx: Any, dz: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
        if dz is None:
            return (None,) * 10
        a, values, rows, gain_D, inverses, *factors = ctx.saved_tensors
        repeated = (rows, ctx.scale)
        da, dtokens, _, dgain_D, *dfactors = ctx.twin.backward(
            a, values, None, gain_D, inverses, dz.contiguous(), *factors, repeated=repeated
        )
        return None, da, dtokens, None, None, None, dgain_D, None, *dfactors
