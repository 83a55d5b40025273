"""The dense topology: a table of -1, 0, 1."""

# Shapes: M vectors, K inputs, N outputs.

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from rcdist.ops.int8_matmul import float_int8_matmul
from rcdist.ops.matmul import matmul
from rcdist.ops.topology.base import LinearMap, Part, Topology


class DenseMap:
    """Multiply by a table of -1, 0, 1. Cost: 2 N K FLOPs per vector."""

    def __init__(self, parts: Mapping[str, Tensor], shape: tuple[int, int]) -> None:
        self.ternary_NK, self.shape = parts["ternary"], shape
        self.scaled_NK = parts.get("scaled")
        """Of a trained matrix, on a GPU: its values in the tokens' dtype, made once per step for backward passes."""

    def to(self, dtype: torch.dtype) -> LinearMap:
        """Return the map with its table in a float dtype."""
        return DenseMap({"ternary": self.ternary_NK.to(dtype)}, self.shape)

    def times(self, x_MK: Tensor) -> Tensor:
        """Return x A^T; int8 codes are summed exactly and returned in float32."""
        if x_MK.dtype == torch.int8:
            return float_int8_matmul(x_MK, self.ternary_NK)
        return matmul(x_MK, self.ternary_NK.to(x_MK.dtype).t())

    def times_transposed(self, y_MN: Tensor) -> Tensor:
        """Return y A."""
        return matmul(y_MN, self.ternary_NK.to(y_MN.dtype))


DENSE = Topology(
    parts=lambda shape, _: {"ternary": Part("weights", shape)},
    # A row has connectivity * inputs entries of 1 or -1.
    unit_gain=lambda shape, connectivity, _: 1 / math.sqrt(connectivity * shape[1]),
    flops=lambda shape, _: 2 * math.prod(shape),
    linear_map=DenseMap,
    has_connectivity=True,
)
