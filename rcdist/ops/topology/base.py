"""What a topology is: how a frozen matrix of that structure is kept, checked, scaled, counted and multiplied by."""

# Shapes: M vectors, K inputs, N outputs.

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

Shape = tuple[int, int]
"""(outputs, inputs) of a matrix."""


class LinearMap(Protocol):
    """Multiply vectors by an unscaled matrix of `shape` (N, K) that may never exist as a table of numbers."""

    shape: Shape

    def times(self, x_MK: Tensor) -> Tensor:
        """Return x A^T, (M, N), in the float dtype of x."""
        ...

    def times_transposed(self, y_MN: Tensor) -> Tensor:
        """Return y A, (M, K), in the float dtype of y: the gradient of `times`."""
        ...

    def to(self, dtype: torch.dtype) -> "LinearMap":
        """Return the map with its table in a float dtype, for many small products in a row."""
        ...


@dataclass(frozen=True)
class Part:
    """Describe one tensor that a frozen matrix keeps.

    Attributes:
        kind: weights: int8 of -1, 0, 1, of which connectivity says how many are not 0; signs: int8 of -1, 1;
            permutation: int32, a random order along the last dimension; cycle: int32, one that is a single cycle.
        shape: of the tensor.
    """

    kind: Literal["weights", "signs", "permutation", "cycle"]
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Return the number of elements."""
        return math.prod(self.shape)

    @property
    def is_ternary(self) -> bool:
        """Say whether it holds -1, 0 and 1; else indices."""
        return self.kind in ("weights", "signs")

    @property
    def dtype(self) -> torch.dtype:
        """Return the dtype of the resident tensor."""
        return torch.int8 if self.is_ternary else torch.int32

    @property
    def resident_bytes(self) -> int:
        """Return the bytes of the resident tensor."""
        return self.size * self.dtype.itemsize

    @property
    def packed_bytes(self) -> int:
        """Return the bytes in which it travels: two bits per ternary value, four bytes per index."""
        return -(-self.size // 4) if self.is_ternary else 4 * self.size


def _no_companions(_: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {}


def inverse_permutation(parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the companion of a permutation."""
    return {"inverse": parts["permutation"].argsort(-1).to(torch.int32)}


def num_stacked(shape: Shape) -> int:
    """Count the square maps that are stacked, the last one cut, in a matrix or its transpose."""
    return -(-max(shape) // min(shape))


def _every_shape(shape: Shape, block_size: int, letter: str) -> None:
    """Refuse nothing."""


@dataclass(frozen=True)
class Topology:
    """One structure of frozen matrices; everything that depends on the structure is asked of this object.

    `block_size` is reservoir.block_size for the matrix; most topologies have no use for it. A fused kernel is optional:
    `ops.project_cpu` and `ops.project_triton` use the map's own products where they have none.

    Attributes:
        parts: (shape, block_size) -> the tensors by name, in the order in which they are packed.
        unit_gain: (shape, connectivity, block_size) -> the factor that turns unit-rms input into unit-rms output.
        flops: (shape, block_size) -> FLOPs of one product with one vector.
        linear_map: (resident tensors by name, shape) -> what multiplies by the matrix, unscaled.
        companions: tensors by name -> what else is resident and made from them, not packed.
        version: of the structure and of the generator, part of the specification: raised when the bytes change.
        check: (shape, block_size, matrix letter) raises ConfigError for a shape that the topology cannot have.
        has_connectivity: reservoir.connectivity means something.
        has_blocks: reservoir.block_size means something.
    """

    parts: Callable[[Shape, int], dict[str, Part]]
    unit_gain: Callable[[Shape, float, int], float]
    flops: Callable[[Shape, int], int]
    linear_map: Callable[[Mapping[str, Tensor], Shape], LinearMap]
    companions: Callable[[Mapping[str, Tensor]], dict[str, Tensor]] = _no_companions
    version: int = 1
    check: Callable[[Shape, int, str], None] = _every_shape
    has_connectivity: bool = False
    has_blocks: bool = False
