"""The ring topology: each channel moves to the next one along a single cycle through all of them."""

# Shapes: M vectors, K inputs, N outputs.

from collections.abc import Mapping

import torch
from torch import Tensor

from rcdist.errors import ConfigError
from rcdist.ops.topology.base import LinearMap, Part, Shape, Topology, inverse_permutation


class RingMap:
    """Permute along one cycle through all channels. Cost: no FLOPs. Rodan and Tino 2011, section III."""

    def __init__(self, parts: Mapping[str, Tensor], shape: tuple[int, int]) -> None:
        self.permutation_K, self.inverse_K = parts["permutation"], parts["inverse"]
        self.shape = shape

    def to(self, dtype: torch.dtype) -> LinearMap:
        """Return the map itself: it has no table."""
        return self

    def times(self, x_MK: Tensor) -> Tensor:
        """Return x A^T."""
        return x_MK.index_select(1, self.permutation_K)

    def times_transposed(self, y_MN: Tensor) -> Tensor:
        """Return y A."""
        return y_MN.index_select(1, self.inverse_K)


def _check(shape: Shape, _: int, letter: str) -> None:
    if shape[0] != shape[1]:
        raise ConfigError(
            "reservoir.topology",
            "ring",
            f"a ring is square, and the matrix {letter} of the plan is {shape[0]} x {shape[1]}",
            "Use hadamard or block for it, e.g. --reservoir.topology '{c: ring, " + letter + ": hadamard}'",
        )


RING = Topology(
    parts=lambda shape, _: {"permutation": Part("cycle", (shape[1],))},
    unit_gain=lambda *_: 1.0,
    flops=lambda *_: 0,
    linear_map=RingMap,
    companions=inverse_permutation,
    check=_check,
)
