"""The block topology: dense blocks along the diagonal, and short runs of outputs in a random order."""

# Shapes: M vectors, K inputs, N outputs, B blocks, C and R inputs and outputs of one block.

import math
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from rcdist.errors import ConfigError
from rcdist.ops.topology.base import LinearMap, Part, Shape, Topology, inverse_permutation

_LONGEST_RUN = 16


class BlockDiagonalMap:
    """Multiply by a block-diagonal ternary matrix whose outputs are permuted. Cost: 2 N C FLOPs per vector.

    What is permuted are runs of at most 16 outputs of one block, 32 bytes in bfloat16: memory is read and written in
    such pieces. Version 1 of the generator permutes single outputs.
    """

    def __init__(self, parts: Mapping[str, Tensor], shape: tuple[int, int]) -> None:
        self.ternary_BRC, self.shape = parts["ternary"], shape
        self.permutation_N, self.inverse_N = parts["permutation"], parts["inverse"]
        self.run = shape[0] // len(parts["order"]) if "order" in parts else 1
        """Outputs that stay together."""

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
    weights = _weights(shape, block_size)
    run = math.gcd(_LONGEST_RUN, weights.shape[1])
    return {"ternary": weights, "order": Part("permutation", (shape[0] // run,))}


def _companions(parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
    blocks, rows, _ = parts["ternary"].shape
    run = blocks * rows // len(parts["order"])
    within = torch.arange(run, device=parts["order"].device)
    whole = {"permutation": (parts["order"].unsqueeze(1) * run + within).flatten().to(torch.int32)}
    return whole | inverse_permutation(whole)


def _permuted_parts(shape: Shape, block_size: int) -> dict[str, Part]:
    return {"ternary": _weights(shape, block_size), "permutation": Part("permutation", (shape[0],))}


def _weights(shape: Shape, block_size: int) -> Part:
    blocks = shape[1] // block_size
    return Part("weights", (blocks, shape[0] // blocks, block_size))


BLOCK = Topology(
    parts=_parts,
    # Each output reads the inputs of its block only.
    unit_gain=lambda _, connectivity, block_size: 1 / math.sqrt(connectivity * block_size),
    flops=lambda shape, block_size: 2 * shape[0] * block_size,
    linear_map=BlockDiagonalMap,
    companions=_companions,
    version=2,
    check=_check,
    has_connectivity=True,
    has_blocks=True,
)

PERMUTED_BLOCK = replace(BLOCK, parts=_permuted_parts, companions=inverse_permutation, version=1)
"""As generator version 1 made it."""
