"""Round trained matrices to ternary, once for all uses of an optimizer step where that is allowed."""

from contextvars import ContextVar, Token

import torch
from torch import Tensor

from rcdist.ops.backend import backend_of, twin_of
from rcdist.ops.quantise import Quantised, Rounding, quantise_weight

_Kept = dict[int, tuple[Tensor, Quantised, Tensor | None]]
"""Weights, what they were rounded to, and that in their own dtype, by the identity of the latent tensor."""

_Columns = dict[tuple[int, float], tuple[Tensor, Tensor]]
"""Gains of frozen matrices, and those times a scale, by the identity of the gain and the scale."""

_scope: ContextVar[tuple[_Kept, _Columns] | None] = ContextVar("scope", default=None)


class WeightsQuantisedOnce:
    """Round each trained matrix at its first use only, while entered; what was rounded is kept between entries.

    So are the factors of a frozen matrix's outputs, which its gain makes.

    Nothing may change or partition the weights meanwhile: for the micro-batches of one optimizer step (ZeRO stages 0
    to 2), for evaluation and for generation. Memory: one byte per trained weight, on a CPU another for generation; in
    training on a GPU two more, for the backward passes of several micro-batches.
    """

    def __init__(self) -> None:
        self._kept: _Kept = {}
        self._columns: _Columns = {}
        self._entered: list[Token[tuple[_Kept, _Columns] | None]] = []

    def __enter__(self) -> None:
        self._entered.append(_scope.set((self._kept, self._columns)))

    def __exit__(self, *_: object) -> None:
        _scope.reset(self._entered.pop())

    def round_again(self) -> None:
        """Round whatever is kept once more, into the tensors where it lies: the weights have changed."""
        for weight, kept, scaled in self._kept.values():
            _quantise(weight, "nearest", kept)
            if scaled is not None:
                _scale(kept, scaled)
        for (_, scale), (gain, columns) in self._columns.items():
            columns.copy_(_columns_of(gain, scale))


def quantised_weight(weight_NK: Tensor, rounding: Rounding = "nearest") -> Quantised:
    """Round a matrix to ternary, or return what it was rounded to in the open scope."""
    scope = _scope.get()
    if scope is None or rounding == "identity":
        return _quantise(weight_NK, rounding)
    weights = scope[0]
    kept = weights.get(id(weight_NK))
    if kept is None:
        kept = weights[id(weight_NK)] = (weight_NK, _quantise(weight_NK, rounding), None)
    return Quantised(weight_NK, kept[1].values, kept[1].scale)


def scaled_weight(rounded: Quantised) -> Tensor | None:
    """Return values * scale of a rounded weight in its dtype, kept in the open scope; None: on a CPU, or without one.

    For backward passes: without it each of them would make it again.
    """
    scope = _scope.get()
    if scope is None or rounded.scale is None or backend_of(rounded.handle) != "triton":
        return None
    kept = scope[0].get(id(rounded.handle))
    if kept is None:
        return None
    if kept[2] is None:
        weight, codes, _ = kept
        kept = scope[0][id(weight)] = (weight, codes, _scale(codes, torch.empty_like(weight.detach())))
    return kept[2]


def columns_of(gain_N: Tensor, scale: float) -> Tensor:
    """Return the factors of a frozen matrix's outputs, gain * scale, float32 or wider; kept in the open scope.

    A gain of 0 counts as 2^-64: of an output that is exactly 0 nobody could tell its gradient.
    """
    scope = _scope.get()
    if scope is None:
        return _columns_of(gain_N, scale)
    kept = scope[1].get((id(gain_N), scale))
    if kept is None:
        kept = scope[1][id(gain_N), scale] = (gain_N, _columns_of(gain_N, scale))
    return kept[1]


def _columns_of(gain_N: Tensor, scale: float) -> Tensor:
    return nonzero(gain_N.detach().to(torch.promote_types(gain_N.dtype, torch.float32))) * scale


def nonzero(gain_N: Tensor) -> Tensor:
    """Return the gains with 2^-64 for 0."""
    return torch.where(gain_N == 0, 2.0**-64, gain_N)


def _scale(rounded: Quantised, out: Tensor) -> Tensor:
    assert rounded.scale is not None
    scaled: Tensor = twin_of("project", out).scale_rows(rounded.values, rounded.scale.expand(len(out)), out.dtype, out)
    return scaled


def _quantise(weight_NK: Tensor, rounding: Rounding, out: Quantised | None = None) -> Quantised:
    """Round a matrix, into the tensors of an earlier call if there was one."""
    twin = twin_of("quantise", weight_NK) if rounding == "nearest" else None
    rounded: Quantised = quantise_weight(weight_NK, rounding) if twin is None else twin.forward(weight_NK, out)
    if twin is None and out is not None:
        assert out.scale is not None and rounded.scale is not None
        out.values.copy_(rounded.values)
        out.scale.copy_(rounded.scale)
    return rounded
