"""The ring topology: each channel moves to the next one along a single cycle through all of them."""

# Shapes: M vectors, K inputs, N outputs, S stacked rings, W width of one ring.

import math
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from rcdist.ops.topology.base import LinearMap, Part, Shape, Topology, inverse_permutation, num_stacked


class RingMap:
    """Permute along one cycle through all channels. Cost: no FLOPs. Rodan and Tino 2011, section III.

    N > K stacks several rings, each with a cycle of its own, of which the last is cut. N < K is the transpose of such a
    stack: sums of a few inputs.
    """

    def __init__(self, parts: Mapping[str, Tensor], shape: tuple[int, int]) -> None:
        permutation, inverse = parts["permutation"], parts["inverse"]
        self.shape, self.width = shape, permutation.shape[-1]
        self.permutation_SW, self.inverse_SW = permutation.view(-1, self.width), inverse.view(-1, self.width)

    def to(self, dtype: torch.dtype) -> LinearMap:
        """Return the map itself: it has no table."""
        return self

    def times(self, x_MK: Tensor) -> Tensor:
        """Return x A^T."""
        outputs, inputs = self.shape
        return self._expand(x_MK, outputs) if outputs >= inputs else self._contract(x_MK)

    def times_transposed(self, y_MN: Tensor) -> Tensor:
        """Return y A."""
        outputs, inputs = self.shape
        return self._contract(y_MN) if outputs >= inputs else self._expand(y_MN, inputs)

    def _expand(self, x_MW: Tensor, outputs: int) -> Tensor:
        return x_MW.index_select(1, self.permutation_SW.flatten()[:outputs])

    def _contract(self, y_MN: Tensor) -> Tensor:
        stacked = len(self.inverse_SW)
        if stacked == 1:
            return y_MN.index_select(1, self.inverse_SW[0])
        starts = torch.arange(0, stacked * self.width, self.width, device=y_MN.device).unsqueeze(1)
        padded = F.pad(y_MN, (0, stacked * self.width - y_MN.shape[1]))
        moved = padded.index_select(1, (self.inverse_SW + starts).flatten())
        return moved.view(-1, stacked, self.width).sum(1)


def _parts(shape: Shape, _: int) -> dict[str, Part]:
    stacked, width = num_stacked(shape), min(shape)
    return {"permutation": Part("cycle", (width,) if stacked == 1 else (stacked, width))}


RING = Topology(
    parts=_parts,
    # A square one and a stack of them have rows of norm 1; a contraction is the transpose: its columns have norm 1.
    unit_gain=lambda shape, *_: math.sqrt(min(shape[0] / shape[1], 1.0)),
    # The additions of a contraction.
    flops=lambda shape, _: max(shape[1] - shape[0], 0),
    linear_map=RingMap,
    companions=inverse_permutation,
)
