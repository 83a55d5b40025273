"""The hadamard topology: sign flips, fast Walsh-Hadamard transforms and a permutation; no matrix is stored."""

# Shapes: M vectors, K inputs, N outputs, S stacked transforms, W width of one transform.

import math
from collections.abc import Mapping
from functools import cache

import torch
from torch import Tensor

from rcdist.errors import ConfigError
from rcdist.ops.topology.base import LinearMap, Part, Shape, Topology

_SMALLEST_TRANSFORM = 8


class HadamardMap:
    """Multiply by H D2 P H D1: sign flips, transform, permutation, sign flips, transform; orthogonal if square.

    N > K stacks independent ones and cuts the last; N < K is the transpose of such a stack. H is block-diagonal with
    transforms over the largest power of two that divides the width. Cost: 2 W log2(size) additions per vector and
    stacked transform; no matrix is stored. Computed in float32 (float64 for float64).
    Ailon and Chazelle 2009, "The fast Johnson-Lindenstrauss transform"; Yu et al. 2016, arXiv:1610.09072.
    """

    def __init__(self, parts: Mapping[str, Tensor], shape: tuple[int, int]) -> None:
        self.signs_S2W = parts["signs"]
        self.permutation_SW, self.inverse_SW = parts["permutation"], parts["inverse"]
        self.shape = shape
        self.size = transform_size(self.signs_S2W.shape[2])

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
        wide = _wide(x_MW)
        x_MSW = wide.unsqueeze(1) * self.signs_S2W[:, 0].to(wide.dtype)
        x_MSW = hadamard_transform(x_MSW, self.size)
        x_MSW = _gather(x_MSW, self.permutation_SW) * self.signs_S2W[:, 1].to(wide.dtype)
        return hadamard_transform(x_MSW, self.size).flatten(1)[:, :outputs].to(x_MW.dtype)

    def _contract(self, y_MN: Tensor) -> Tensor:
        num_stacked, _, width = self.signs_S2W.shape
        wide = torch.nn.functional.pad(_wide(y_MN), (0, num_stacked * width - y_MN.shape[1]))
        y_MSW = hadamard_transform(wide.view(-1, num_stacked, width), self.size)
        y_MSW = _gather(y_MSW * self.signs_S2W[:, 1].to(wide.dtype), self.inverse_SW)
        y_MSW = hadamard_transform(y_MSW, self.size) * self.signs_S2W[:, 0].to(wide.dtype)
        return y_MSW.sum(1).to(y_MN.dtype)


def num_stacked(shape: Shape) -> int:
    """Count the stacked transforms of a matrix."""
    return -(-max(shape) // min(shape))


def transform_size(width: int) -> int:
    """Return the largest power of two that divides the width."""
    return width & -width


def hadamard_transform(x: Tensor, size: int) -> Tensor:
    """Apply the orthonormal Walsh-Hadamard transform to each run of `size` channels of the last dimension.

    Args:
        x: (..., W), float; W is a multiple of size.
        size: a power of two.

    A transform over a x b channels is one over a and one over b: two products with small matrices.
    """
    rows = 1 << (size.bit_length() - 1) // 2
    columns = size // rows
    flat = x.reshape(-1, columns) @ hadamard_matrix(columns, x.dtype, x.device)
    if rows > 1:
        flat = torch.matmul(hadamard_matrix(rows, x.dtype, x.device), flat.view(-1, rows, columns))
    return flat.view(x.shape)


@cache
def hadamard_matrix(size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return the orthonormal symmetric Walsh-Hadamard matrix of a power of two."""
    index = torch.arange(size)
    shared_bits = index.unsqueeze(1) & index
    parity = sum((shared_bits >> bit) & 1 for bit in range(size.bit_length()))
    assert isinstance(parity, Tensor)
    return ((1 - 2 * (parity % 2)) / math.sqrt(size)).to(device=device, dtype=dtype)


def _gather(x_MSW: Tensor, index_SW: Tensor) -> Tensor:
    return x_MSW.gather(2, index_SW.long().unsqueeze(0).expand(len(x_MSW), -1, -1))


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _check(shape: Shape, _: int, letter: str) -> None:
    if transform_size(min(shape)) < _SMALLEST_TRANSFORM:
        raise ConfigError(
            "reservoir.topology",
            "hadamard",
            f"matrix {letter} is {shape[0]} x {shape[1]}, and {min(shape)} is no multiple of {_SMALLEST_TRANSFORM}",
            f"Use a width that is, best one with a large power of two, or another topology for {letter}",
        )


def _parts(shape: Shape, _: int) -> dict[str, Part]:
    stacked, width = num_stacked(shape), min(shape)
    return {"signs": Part("signs", (stacked, 2, width)), "permutation": Part("permutation", (stacked, width))}


HADAMARD = Topology(
    parts=_parts,
    # A square one and a stack of them have rows of norm 1; a contraction is the transpose: its columns have norm 1.
    unit_gain=lambda shape, *_: math.sqrt(min(shape[0] / shape[1], 1.0)),
    # One per addition of the two transforms.
    flops=lambda shape, _: 2 * num_stacked(shape) * min(shape) * int(math.log2(transform_size(min(shape)))),
    linear_map=HadamardMap,
    check=_check,
)
