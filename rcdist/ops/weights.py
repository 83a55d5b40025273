"""Round trained matrices to ternary, once for all uses of an optimizer step where that is allowed."""

from contextvars import ContextVar, Token

from torch import Tensor

from rcdist.ops.backend import backend_of
from rcdist.ops.quantise import Quantised, Rounding, quantise_weight
from rcdist.ops.quantise_cpu import quantise_weight_cpu

_Kept = dict[int, tuple[Tensor, Quantised]]
"""Rounded weights by the identity of the latent tensor."""

_scope: ContextVar[_Kept | None] = ContextVar("scope", default=None)


class WeightsQuantisedOnce:
    """Round each trained matrix at its first use only, while entered; what was rounded is kept between entries.

    Nothing may change or partition the weights meanwhile: for the micro-batches of one optimizer step (ZeRO stages 0
    to 2), for evaluation and for generation. Memory: one byte per trained weight, on a CPU another for generation.
    """

    def __init__(self) -> None:
        self._kept: _Kept = {}
        self._entered: list[Token[_Kept | None]] = []

    def __enter__(self) -> None:
        self._entered.append(_scope.set(self._kept))

    def __exit__(self, *_: object) -> None:
        _scope.reset(self._entered.pop())


def quantised_weight(weight_NK: Tensor, rounding: Rounding = "nearest") -> Quantised:
    """Round a matrix to ternary, or return what it was rounded to in the open scope."""
    scope = _scope.get()
    if scope is None or rounding == "identity":
        return _quantise(weight_NK, rounding)
    kept = scope.get(id(weight_NK))
    if kept is None:
        kept = scope[id(weight_NK)] = (weight_NK, _quantise(weight_NK, rounding))
    return Quantised(weight_NK, kept[1].values, kept[1].scale)


def _quantise(weight_NK: Tensor, rounding: Rounding) -> Quantised:
    is_compiled = rounding == "nearest" and backend_of(weight_NK) == "cpu"
    return quantise_weight_cpu(weight_NK) if is_compiled else quantise_weight(weight_NK, rounding)
