"""The block topology: dense blocks along the diagonal, and outputs in a random order."""

# Shapes: M vectors, K inputs, N outputs, B blocks, C and R inputs and outputs of one block.

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from rcdist.errors import ConfigError
from rcdist.ops.topology.base import LinearMap, Part, Shape, Topology, inverse_permutation


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


def _check(shape: Shape, block_size: int, letter: str) -> None:
    outputs, inputs = shape
    if inputs % block_size or outputs % (inputs // block_size):
        raise ConfigError(
            "reservoir.block_size",
            block_size,
            f"the matrix {letter} is {outputs} x {inputs}: blocks of {block_size} inputs do not divide both",
            f"Use a divisor of {inputs} for which {inputs} / block_size divides {outputs}, "
            f"e.g. {inputs // math.gcd(inputs, outputs)}",
        )


def _parts(shape: Shape, block_size: int) -> dict[str, Part]:
    blocks = shape[1] // block_size
    weights = Part("weights", (blocks, shape[0] // blocks, block_size))
    return {"ternary": weights, "permutation": Part("permutation", (shape[0],))}


BLOCK = Topology(
    parts=_parts,
    # Each output reads the inputs of its block only.
    unit_gain=lambda _, connectivity, block_size: 1 / math.sqrt(connectivity * block_size),
    flops=lambda shape, block_size: 2 * shape[0] * block_size,
    linear_map=BlockDiagonalMap,
    companions=inverse_permutation,
    check=_check,
    has_connectivity=True,
    has_blocks=True,
)
