"""Linear maps by frozen matrices: dense, block, hadamard and ring; forwards and transposed, unscaled."""

# Shapes: M vectors, K inputs, N outputs, S stacked transforms, W width of one transform, C and R inputs and outputs of
# one block.

import math
from collections.abc import Mapping
from functools import cache
from typing import Protocol

import torch
from torch import Tensor

from rcdist.ops.int8_matmul import float_int8_matmul
from rcdist.ops.matmul import matmul


class LinearMap(Protocol):
    """Multiply vectors by a matrix of `shape` (N, K) that may never exist as a table of numbers."""

    shape: tuple[int, int]

    def times(self, x_MK: Tensor) -> Tensor:
        """Return x A^T, (M, N), in the float dtype of x."""
        ...

    def times_transposed(self, y_MN: Tensor) -> Tensor:
        """Return y A, (M, K), in the float dtype of y: the gradient of `times`."""
        ...

    def to(self, dtype: torch.dtype) -> "LinearMap":
        """Return the map with its table in a float dtype, for many small products in a row."""
        ...


class Dense:
    """Multiply by a table of -1, 0, 1. Cost: 2 N K FLOPs per vector."""

    def __init__(self, parts: Mapping[str, Tensor], shape: tuple[int, int]) -> None:
        self.ternary_NK, self.shape = parts["ternary"], shape

    def to(self, dtype: torch.dtype) -> LinearMap:
        """Return the map with its table in a float dtype."""
        return Dense({"ternary": self.ternary_NK.to(dtype)}, self.shape)

    def times(self, x_MK: Tensor) -> Tensor:
        """Return x A^T; int8 codes are summed exactly and returned in float32."""
        if x_MK.dtype == torch.int8:
            return float_int8_matmul(x_MK, self.ternary_NK)
        return matmul(x_MK, self.ternary_NK.to(x_MK.dtype).t())

    def times_transposed(self, y_MN: Tensor) -> Tensor:
        """Return y A."""
        return matmul(y_MN, self.ternary_NK.to(y_MN.dtype))


class Block:
    """Multiply by a block-diagonal ternary matrix whose outputs are permuted. Cost: 2 N C FLOPs per vector."""

    def __init__(self, parts: Mapping[str, Tensor], shape: tuple[int, int]) -> None:
        self.ternary_BRC, self.shape = parts["ternary"], shape
        self.permutation_N, self.inverse_N = parts["permutation"], parts["inverse"]

    def to(self, dtype: torch.dtype) -> LinearMap:
        """Return the map with its table in a float dtype."""
        indices = {"permutation": self.permutation_N, "inverse": self.inverse_N}
        return Block({"ternary": self.ternary_BRC.to(dtype), **indices}, self.shape)

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


class Hadamard:
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


class Ring:
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


_TOPOLOGIES: Mapping[str, type[Dense | Block | Hadamard | Ring]] = {
    "dense": Dense,
    "block": Block,
    "hadamard": Hadamard,
    "ring": Ring,
}


def linear_map(topology: str, parts: Mapping[str, Tensor], shape: tuple[int, int]) -> LinearMap:
    """Return the map of a topology over its tensors.

    Args:
        topology: dense, block, hadamard or ring.
        parts: ternary (int8), signs (int8), permutation and inverse (int32), as far as the topology has them.
        shape: (N, K).
    """
    return _TOPOLOGIES[topology](parts, shape)


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
