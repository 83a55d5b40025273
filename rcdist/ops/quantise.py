"""Quantisers of BitNet b1.58: int8 activations per token, ternary weights per matrix."""

# Shapes: K input width, N output width, ... any leading dimensions (tokens).

from typing import Literal, NamedTuple

import torch
from torch import Tensor

Rounding = Literal["nearest", "identity"]

_SMALLEST = 1e-5


class Quantised(NamedTuple):
    """Hold what stands in for a tensor in a ternary product: value = values * scale.

    Attributes:
        handle: the tensor before rounding; it takes the straight-through gradient.
        values: int8 codes, or, unrounded, the tensor itself without its history.
        scale: float32, one per token (..., 1) or one per matrix (); None: 1.
    """

    handle: Tensor
    values: Tensor
    scale: Tensor | None


def quantise_tokens(x: Tensor, rounding: Rounding = "nearest") -> Quantised:
    """Round each token to int8 by its largest absolute value (Q8).

    s = 127 / max(max|x|, 1e-5); x ~ round(x * s) / s. The clip to [-128, 127] of the definition never acts, because
    |x * s| <= 127.

    Args:
        x: (..., K), any float dtype. A token that is not finite keeps a scale that is not finite.
        rounding: identity passes x through exactly.

    Ma et al. 2024, arXiv:2402.17764, section 2; Zhu et al. 2024, arXiv:2406.02528, section 3.1.
    """
    raw = x.detach()
    if rounding == "identity":
        return Quantised(x, raw, None)
    # Two reductions of x are vectorised on a CPU, the infinity norm is not; NaN passes through all of them.
    largest = torch.maximum(raw.amax(-1, keepdim=True), -raw.amin(-1, keepdim=True)).float().clamp_(min=_SMALLEST)
    return Quantised(x, (raw * (127.0 / largest)).round_().to(torch.int8), largest / 127.0)


def quantise_weight(weight_NK: Tensor, rounding: Rounding = "nearest") -> Quantised:
    """Round a matrix to -1, 0, 1 by its mean absolute value (Q158).

    beta = max(mean|W|, 1e-5); W ~ clip(round(W / beta), -1, 1) * beta

    Args:
        weight_NK: any float dtype; beta and the quotient are float32.
        rounding: identity passes the matrix through exactly.

    Ma et al. 2024, arXiv:2402.17764, section 2, equations 1-3.
    """
    raw = weight_NK.detach()
    if rounding == "identity":
        return Quantised(weight_NK, raw, None)
    beta = absmean(raw)
    return Quantised(weight_NK, ternary_codes(raw, beta), beta)


def absmean(weight: Tensor) -> Tensor:
    """Return beta = max(mean|W|, 1e-5), float32, the scale of a ternary matrix."""
    return weight.detach().abs().mean(dtype=torch.float32).clamp_(min=_SMALLEST)


def ternary_codes(weight: Tensor, beta: Tensor) -> Tensor:
    """Return clip(round(W / beta), -1, 1) as int8; the quotient is float32."""
    return (weight.detach().float() / beta).round_().clamp_(-1, 1).to(torch.int8)
