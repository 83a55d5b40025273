"""The identity topology: channels go on as they are, repeated where there are more outputs than inputs."""

# Shapes: M vectors, K inputs, N outputs, S repetitions, W channels that are repeated.

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from rcdist.ops.topology.base import LinearMap, Shape, Topology, num_stacked


class IdentityMap:
    """Repeat channels until there are enough; N < K is the transpose: what would be repeated is summed.

    Nothing is stored, and nothing is multiplied. Inside a GLU whose other matrices are trained it is as good as any
    stack of permutations: only the order of the hidden channels differs.
    """

    def __init__(self, shape: tuple[int, int]) -> None:
        self.shape = shape

    def to(self, dtype: torch.dtype) -> LinearMap:
        """Return the map itself: it has no table."""
        return self

    def times(self, x_MK: Tensor) -> Tensor:
        """Return x A^T."""
        outputs, inputs = self.shape
        return _repeat(x_MK, outputs) if outputs >= inputs else _fold(x_MK, outputs)

    def times_transposed(self, y_MN: Tensor) -> Tensor:
        """Return y A."""
        outputs, inputs = self.shape
        return _fold(y_MN, inputs) if outputs >= inputs else _repeat(y_MN, inputs)


def _repeat(x_MW: Tensor, outputs: int) -> Tensor:
    width = x_MW.shape[1]
    return x_MW.repeat(1, num_stacked((outputs, width)))[:, :outputs]


def _fold(y_MN: Tensor, width: int) -> Tensor:
    stacked = num_stacked((y_MN.shape[1], width))
    return F.pad(y_MN, (0, stacked * width - y_MN.shape[1])).view(-1, stacked, width).sum(1)


def _unit_gain(shape: Shape, *_: object) -> float:
    # A square one and a stack of them have rows of norm 1; a contraction is the transpose: its columns have norm 1.
    return math.sqrt(min(shape[0] / shape[1], 1.0))


IDENTITY = Topology(
    parts=lambda *_: {},
    unit_gain=_unit_gain,
    # The additions of a contraction.
    flops=lambda shape, _: max(shape[1] - shape[0], 0),
    linear_map=lambda _, shape: IdentityMap(shape),
)
