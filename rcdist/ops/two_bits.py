"""Ternary matrices that stay at two bits a weight in memory, for inference."""

# Shapes: M vectors, K inputs, N outputs, Q bytes of a row: K / 4.

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from rcdist.ops import native
from rcdist.ops.backend import has_triton
from rcdist.ops.topology import DenseMap, LinearMap


class _Packed(ABC):
    """Multiply floats by a table that is unpacked for it."""

    shape: tuple[int, int]
    packed: Tensor

    @abstractmethod
    def unpack(self) -> Tensor:
        """Return the table, int8 (N, K)."""

    def times(self, x_MK: Tensor) -> Tensor:
        """Return x A^T; int8 codes are summed exactly and returned in float32."""
        return self._unpacked().times(x_MK)

    def times_transposed(self, y_MN: Tensor) -> Tensor:
        """Return y A."""
        return self._unpacked().times_transposed(y_MN)

    def to(self, dtype: torch.dtype) -> LinearMap:
        """Return the map with its table in a float dtype."""
        return self._unpacked().to(dtype)

    def _unpacked(self) -> DenseMap:
        return DenseMap({"ternary": self.unpack()}, self.shape)


class TwoBitMap(_Packed):
    """Multiply by a table of -1, 0, 1 of which four lie in a byte, as ops/cpu/two_bits.cpp reads them.

    Products of int8 codes are summed exactly, as by every other kernel. Few vectors at a time, as in generation, take
    the time of reading N K / 4 bytes. Other products unpack the table first.

    Args:
        ternary_NK: int8 of -1, 0, 1, contiguous, on the CPU; it is not kept.
    """

    def __init__(self, ternary_NK: Tensor) -> None:
        self.shape = (ternary_NK.shape[0], ternary_NK.shape[1])
        self.packed = torch.empty(native.query("two_bit_bytes", *self.shape), dtype=torch.uint8)
        native.call("pack_two_bits", None, ternary_NK, self.packed, *self.shape)

    def unpack(self) -> Tensor:
        """Return the table, int8 (N, K)."""
        ternary_NK = torch.empty(self.shape, dtype=torch.int8)
        native.call("unpack_two_bits", None, self.packed, ternary_NK, *self.shape)
        return ternary_NK

    def scaled_product(self, like: Tensor, codes_MK: Tensor, rows_M: Tensor, columns_N: Tensor) -> Tensor:
        """Return (codes A^T) * rows * columns, (M, N) in the dtype of `like`."""
        out = torch.empty(len(codes_MK), self.shape[0], dtype=like.dtype)
        arguments = (codes_MK, self.packed, rows_M, columns_N, out)
        native.call("two_bit_product", out, *arguments, len(codes_MK), *self.shape)
        return out


class TwoBitPlanes(_Packed):
    """Multiply by a table of -1, 0, 1 of which four lie in a byte, as ops/two_bits_triton.py reads them.

    Args:
        ternary_NK: int8 of -1, 0, 1, K a multiple of 16; it is not kept.
    """

    def __init__(self, ternary_NK: Tensor) -> None:
        self.shape = (ternary_NK.shape[0], ternary_NK.shape[1])
        quarters_N4Q = (ternary_NK + 1).to(torch.uint8).view(self.shape[0], 4, -1)
        self.packed = quarters_N4Q[:, 0].contiguous()
        for place in range(1, 4):
            self.packed |= quarters_N4Q[:, place] << (2 * place)

    def unpack(self) -> Tensor:
        """Return the table, int8 (N, K)."""
        quarters = [((self.packed >> (2 * place)) & 3).to(torch.int8) - 1 for place in range(4)]
        return torch.cat(quarters, dim=1)


def compact_map(ternary_NK: Tensor) -> LinearMap:
    """Return the smallest map of a ternary table that its device has kernels for: two bits a weight, else a byte."""
    if ternary_NK.device.type == "cpu" and native.is_available():
        return TwoBitMap(ternary_NK.contiguous())
    if ternary_NK.device.type == "cuda" and has_triton():
        from rcdist.ops import two_bits_triton

        if two_bits_triton.fits(ternary_NK.shape[1]):
            return TwoBitPlanes(ternary_NK)
    return DenseMap({"ternary": ternary_NK}, (ternary_NK.shape[0], ternary_NK.shape[1]))
