"""The block topology: dense blocks along the diagonal, and outputs in a random order."""

# Shapes: M vectors, K inputs, N outputs, B blocks, C and R inputs and outputs of one block.

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from rcdist.errors import ConfigError
from rcdist.ops.topology.base import LinearMap, Part, Shape, Topology


class BlockDiagonalMap:
    """Multiply by a block-diagonal ternary matrix whose outputs are permuted. Cost: 2 N C FLOPs per vector."""

    def __init__(self, parts: Mapping[str, Tensor], shape: tuple[int, int]) -> None:
        self.ternary_BRC, self.shape = parts["ternary"], shape
        self.permutation_N, self.inverse_N = parts["permutation"], parts["inverse"]

    def to(self, dtype: torch.dtype) -> LinearMap:
        """Return the map with its table in a float dtype."""
        indices = {"permutation": self.permutation_N, "inverse": self.inverse_N}
        return BlockDiagonalMap({"ternary": self.ternary_BRC.to(dtype), **indices}, self.shape)

    def times(self, x_MK: Tensor) -> Tensor:
        """Return x A^T."""
        num_blocks, _, columns = self.ternary_BRC.shape
        x_BMC = x_MK.reshape(-1, num_blocks, columns).transpose(0, 1)
        y_BMR = torch.bmm(x_BMC, self.ternary_BRC.to(x_MK.dtype).transpose(1, 2))
        return y_BMR.transpose(0, 1).reshape(len(x_MK), -1).index_select(1, self.permutation_N)

    def times_transposed(self, y_MN: Tensor) -> Tensor:
        """Return y A."""
        num_blocks, rows, _ = self.ternary_BRC.shape
        y_BMR = y_MN.index_select(1, self.inverse_N).view(-1, num_blocks, rows).transpose(0, 1)
        x_BMC = torch.bmm(y_BMR, self.ternary_BRC.to(y_MN.dtype))
        return x_BMC.transpose(0, 1).reshape(len(y_MN), -1)


class BlockDiagonal(Topology):
    """Each output reads the block_size inputs of its block only."""

    has_connectivity = has_blocks = True

    def check(self, shape: Shape, block_size: int, letter: str) -> None:
        """Refuse blocks that do not divide inputs and outputs alike; see Topology.check."""
        outputs, inputs = shape
        if inputs % block_size or outputs % (inputs // block_size):
            raise ConfigError(
                "reservoir.block_size",
                block_size,
                f"the matrix {letter} is {outputs} x {inputs}: blocks of {block_size} inputs do not divide both",
                f"Use a divisor of {inputs} for which {inputs} / block_size divides {outputs}, "
                f"e.g. {inputs // math.gcd(inputs, outputs)}",
            )

    def parts(self, shape: Shape, block_size: int) -> dict[str, Part]:
        """See Topology.parts."""
        outputs, inputs = shape
        blocks = inputs // block_size
        return {
            "ternary": Part("weights", (blocks, outputs // blocks, block_size)),
            "permutation": Part("permutation", (outputs,)),
        }

    def unit_gain(self, shape: Shape, connectivity: float, block_size: int) -> float:
        """See Topology.unit_gain."""
        return 1 / math.sqrt(connectivity * block_size)

    def flops(self, shape: Shape, block_size: int) -> int:
        """Return two per weight."""
        return 2 * shape[0] * block_size

    def linear_map(self, parts: Mapping[str, Tensor], shape: Shape) -> LinearMap:
        """See Topology.linear_map."""
        return BlockDiagonalMap(parts, shape)
