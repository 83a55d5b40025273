"""The hadamard topology: sign flips and fast Walsh-Hadamard transforms; no matrix is stored."""

# Shapes: M vectors, K inputs, N outputs, S stacked transforms, W width of one transform.

import math
from collections.abc import Mapping
from dataclasses import replace
from functools import cache

import torch
from torch import Tensor

from rcdist.errors import ConfigError
from rcdist.ops.topology.base import LinearMap, Part, Shape, Topology, inverse_permutation, num_stacked

_SMALLEST_TRANSFORM = 8


class HadamardMap:
    """Multiply by H D2 H D1: sign flips, transform, sign flips, transform; orthogonal if square.

    N > K stacks several D2, of which the last is cut: their first half, H D1 x, is the same. N < K is the transpose of
    such a stack. H is block-diagonal with transforms over runs of channels, as long as the largest power of two that
    divides the width; where there are several, channel k of each run moves on by k runs between the transforms. Cost:
    W log2(size) additions per vector for the first half and for each stacked second one; no matrix is stored. Computed
    in float32 (float64 for float64).
    Ailon and Chazelle 2009, "The fast Johnson-Lindenstrauss transform"; Yu et al. 2016, arXiv:1610.09072.

    Version 1 of the generator has a D1 for every D2, and a random permutation between the transforms.
    """

    def __init__(self, parts: Mapping[str, Tensor], shape: tuple[int, int]) -> None:
        signs = parts["signs"]
        self.shape, self.width = shape, signs.shape[-1]
        self.size = transform_size(self.width)
        self.bits_SW = parts.get("bits")
        """Of version 2: D1 and every D2 as the bits of float16."""
        self.index_SW: Tensor | None = None
        self.inverse_SW: Tensor | None = None
        self.is_shared = signs.dim() == 2
        """The first half is the same for all that are stacked."""
        if self.is_shared:
            self.first_SW, self.second_SW = signs[:1], signs[1:]
            if self.size < self.width:
                self.index_SW, self.inverse_SW = _mixing(self.width, signs.device)
        else:
            self.first_SW, self.second_SW = signs[:, 0], signs[:, 1]
            self.index_SW, self.inverse_SW = parts["permutation"], parts["inverse"]

    @property
    def num_stacked(self) -> int:
        """Return how many transforms are stacked."""
        return len(self.second_SW)

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
        x_MSW = hadamard_transform(wide.unsqueeze(1) * self.first_SW.to(wide.dtype), self.size)
        x_MSW = _gather(x_MSW, self.index_SW) * self.second_SW.to(wide.dtype)
        return hadamard_transform(x_MSW, self.size).flatten(1)[:, :outputs].to(x_MW.dtype)

    def _contract(self, y_MN: Tensor) -> Tensor:
        wide = torch.nn.functional.pad(_wide(y_MN), (0, self.num_stacked * self.width - y_MN.shape[1]))
        y_MSW = hadamard_transform(wide.view(-1, self.num_stacked, self.width), self.size)
        y_MSW = y_MSW * self.second_SW.to(wide.dtype)
        if self.is_shared:
            y_MSW = y_MSW.sum(1, keepdim=True)
        y_MSW = hadamard_transform(_gather(y_MSW, self.inverse_SW), self.size) * self.first_SW.to(wide.dtype)
        return y_MSW.sum(1).to(y_MN.dtype)


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


def _gather(x_MSW: Tensor, index_SW: Tensor | None) -> Tensor:
    if index_SW is None:
        return x_MSW
    return x_MSW.gather(2, index_SW.long().unsqueeze(0).expand(len(x_MSW), -1, -1))


@cache
def _mixing(width: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return where each channel comes from when channel k of each run has moved on by k runs, and the way back."""
    size = transform_size(width)
    runs, channel = width // size, torch.arange(width)
    run, k = channel // size, channel % size
    index, inverse = ((run - k) % runs * size + k, (run + k) % runs * size + k)
    return tuple(x.to(device, torch.int32).unsqueeze(0) for x in (index, inverse))  # type: ignore[return-value]


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
    return {"signs": Part("signs", (1 + num_stacked(shape), min(shape)))}


def _permuted_parts(shape: Shape, _: int) -> dict[str, Part]:
    stacked, width = num_stacked(shape), min(shape)
    return {"signs": Part("signs", (stacked, 2, width)), "permutation": Part("permutation", (stacked, width))}


def _sign_bits(parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
    # The GPU kernels flip signs more often than they load tokens: from these bits no conversion is needed.
    return {"bits": parts["signs"].to(torch.float16).view(torch.int16)}


def _additions(shape: Shape) -> int:
    return min(shape) * int(math.log2(transform_size(min(shape))))


HADAMARD = Topology(
    parts=_parts,
    # A square one and a stack of them have rows of norm 1; a contraction is the transpose: its columns have norm 1.
    unit_gain=lambda shape, *_: math.sqrt(min(shape[0] / shape[1], 1.0)),
    # One per addition of the transforms.
    flops=lambda shape, _: (1 + num_stacked(shape)) * _additions(shape),
    linear_map=HadamardMap,
    companions=_sign_bits,
    version=2,
    check=_check,
)

PERMUTED_HADAMARD = replace(
    HADAMARD,
    parts=_permuted_parts,
    flops=lambda shape, _: 2 * num_stacked(shape) * _additions(shape),
    companions=inverse_permutation,
    version=1,
)
"""As generator version 1 made it."""
