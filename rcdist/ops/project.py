"""Several ternary products of one input, trained or frozen: what is common to them is done once."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from rcdist.ops.backend import backend_of
from rcdist.ops.frozen import frozen_product
from rcdist.ops.quantise import Quantised, Rounding, quantise_weight
from rcdist.ops.ternary import ternary_product
from rcdist.ops.topology import LinearMap


@dataclass(frozen=True)
class Trained:
    """Name a trained matrix.

    Attributes:
        weight_NK: latent weights, rounded to ternary.
        rounding: identity leaves them as they are.
    """

    weight_NK: Tensor
    rounding: Rounding = "nearest"


@dataclass(frozen=True)
class Frozen:
    """Name a frozen matrix.

    Attributes:
        matrix: what multiplies by it, unscaled.
        scale: multiplies it.
        gain_N: trained gain of each output channel. None: 1.
    """

    matrix: LinearMap
    scale: float
    gain_N: Tensor | None = None


Projection = Trained | Frozen


def project(tokens: Quantised, projections: Sequence[Projection]) -> list[Tensor]:
    """Multiply quantised tokens by several matrices.

    Args:
        tokens: (..., K) from one of the quantising operations.
        projections: matrices (N_i, K).

    Returns:
        One (..., N_i) per matrix, in the dtype of the tokens' handle.

    Cost: per matrix 2 M N K FLOPs forward, and backward 4 M N K trained or 2 M N K frozen (structured ones: see
    `ops.topology`). Fused, the input's gradient is summed in place and the tokens are made float once for all weight
    gradients; saved for backward: the int8 codes, and the outputs of frozen matrices with a gain.
    """
    backend = backend_of(tokens.handle)
    if backend != "reference" and tokens.scale is not None:
        if backend == "cpu":
            from rcdist.ops.project_cpu import project_cpu

            return project_cpu(tokens, projections)
        from rcdist.ops.project_triton import project_triton

        return project_triton(tokens, projections)
    return [project_reference(tokens, projection) for projection in projections]


def project_reference(tokens: Quantised, projection: Projection) -> Tensor:
    """Multiply by one matrix in plain PyTorch."""
    if isinstance(projection, Frozen):
        return frozen_product(tokens, projection.matrix, projection.scale, projection.gain_N)
    return ternary_product(tokens, quantised_weight(projection.weight_NK, projection.rounding))


class _Scope:
    """Hold the rounded weights of the open scope by the identity of the latent tensor."""

    kept: dict[int, tuple[Tensor, Quantised]] | None = None


class WeightsQuantisedOnce:
    """Round each trained matrix at its first use only, while entered; what was rounded is kept between entries.

    Nothing may change or partition the weights meanwhile: for the micro-batches of one optimizer step (ZeRO stages 0
    to 2), for evaluation and for generation. Memory: one byte per trained weight, on a CPU another for generation.
    """

    def __init__(self) -> None:
        self._kept: dict[int, tuple[Tensor, Quantised]] = {}
        self._before: list[dict[int, tuple[Tensor, Quantised]] | None] = []

    def __enter__(self) -> None:
        self._before.append(_Scope.kept)
        _Scope.kept = self._kept

    def __exit__(self, *_: object) -> None:
        _Scope.kept = self._before.pop()


def quantised_weight(weight_NK: Tensor, rounding: Rounding = "nearest") -> Quantised:
    """Round a matrix to ternary, or return what it was rounded to in the open scope."""
    if _Scope.kept is None or rounding == "identity":
        return _quantise(weight_NK, rounding)
    kept = _Scope.kept.get(id(weight_NK))
    if kept is None:
        kept = _Scope.kept[id(weight_NK)] = (weight_NK, _quantise(weight_NK, rounding))
    return Quantised(weight_NK, kept[1].values, kept[1].scale)


def _quantise(weight_NK: Tensor, rounding: Rounding) -> Quantised:
    if rounding == "nearest" and backend_of(weight_NK) == "cpu":
        from rcdist.ops.project_cpu import quantise_weight_cpu

        return quantise_weight_cpu(weight_NK)
    return quantise_weight(weight_NK, rounding)
