"""What the hadamard kernels share: products with matrices of 1 and -1, tiles that are transposed, and the launch."""

# Shapes as in hadamard_triton.

from dataclasses import dataclass
from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from rcdist.ops.topology import HadamardMap
from rcdist.ops.topology.hadamard import hadamard_matrix
from rcdist.ops.triton_common import multiprocessors

TILE, _WARPS = 4096, 4
"""Channels, all its tokens together, and warps of a program: the fastest of 8192 to 32768 and 2 to 8 on an H100."""


@triton.jit
def product(x, h):
    """Return x h, in float16 where both are, else in float32."""
    if x.dtype == tl.float16:
        y = tl.dot(x, h, out_dtype=tl.float16)
    elif x.dtype == tl.float32:
        y = tl.dot(x, h, input_precision="tf32x3")
    else:
        y = tl.dot(x, h)
    return y


@triton.jit
def load_matrices(h_p, h_q, P: tl.constexpr, Q: tl.constexpr):
    """Load both matrices; with them return the channels of the grid P x Q, and of its transpose."""
    p, q = tl.arange(0, P), tl.arange(0, Q)
    hp = tl.load(h_p + p[:, None] * P + p[None, :])
    hq = tl.load(h_q + q[:, None] * Q + q[None, :])
    return hp, hq, p[:, None] * Q + q[None, :], p[None, :] * Q + q[:, None]


@triton.jit
def signs_of(at, kind: tl.constexpr):
    """Load signs, which are kept as the bits of 1 and -1 in float16."""
    bits = tl.load(at)
    if kind == tl.float16:
        sign = bits.to(kind, bitcast=True)
    elif kind == tl.bfloat16:
        sign = ((bits & -32768) | 0x3F80).to(kind, bitcast=True)
    else:
        sign = (((bits.to(tl.int32) & 0x8000) << 16) | 0x3F800000).to(kind, bitcast=True)
    return sign


@triton.jit
def float_of(codes, kind: tl.constexpr):
    """Return int8 codes as float16 by way of the bits of 1024 + 128 + code, which is faster than a conversion."""
    if kind == tl.float16:
        value = (((codes.to(tl.int16) & 255) ^ 128) | 0x6400).to(tl.float16, bitcast=True) - 1152.0
    else:
        value = codes.to(kind)
    return value


@triton.jit
def turned(x, R: tl.constexpr, A: tl.constexpr, B: tl.constexpr):
    """Transpose each of R tiles A x B that lie under one another."""
    return tl.reshape(tl.permute(tl.reshape(x, [R, A, B]), 0, 2, 1), [R * B, A])


@triton.jit
def spread(x, R: tl.constexpr):
    """Repeat a tile (A, B) under itself, R times."""
    return tl.reshape(tl.broadcast_to(x[None, :, :], [R, x.shape[0], x.shape[1]]), [R * x.shape[0], x.shape[1]])


@dataclass(frozen=True)
class Launch:
    """Say how the kernels are launched for a matrix.

    Attributes:
        programs: as many as are at work at once, each with many tiles.
        runs: of the width.
        bits_SW: D1 and every D2 as the bits of float16.
        h_p: the Walsh-Hadamard matrix of size P, of 1/8 and -1/8, which keeps float16 below its largest, 65504.
        h_q: of size Q, of 1 and -1.
        factor: what makes the two transforms orthonormal.
        shrink: power of two by which a sum over the stacked transforms is made no larger than one of them.
        stages: tiles whose loads are under way.
        sizes: stacked transforms S, tokens R of a tile, P, Q and warps.
    """

    programs: int
    runs: int
    bits_SW: Tensor
    h_p: Tensor
    h_q: Tensor
    factor: float
    shrink: float
    stages: int
    sizes: dict[str, int]

    @property
    def scratch(self) -> Tensor:
        """Return memory for one tile of each program, where a width has several runs."""
        shape = (self.programs, self.sizes["R"], self.bits_SW.shape[1])
        return torch.empty(shape, dtype=self.h_p.dtype, device=self.h_p.device)


def launch_of(out: Tensor, matrix: HadamardMap, kind: torch.dtype, per_multiprocessor: int) -> Launch:
    """Choose how to launch for a result; kind: dtype of the products."""
    log = matrix.size.bit_length() - 1
    p, q, rows = 1 << (log - log // 2), 1 << log // 2, max(TILE // matrix.size, 1)
    programs = min(triton.cdiv(len(out), rows), per_multiprocessor * multiprocessors(out.device))
    assert matrix.bits_SW is not None
    return Launch(
        programs=programs,
        runs=matrix.width // matrix.size,
        bits_SW=matrix.bits_SW,
        h_p=_signs_matrix(p, 0.125, kind, out.device),
        h_q=_signs_matrix(q, 1.0, kind, out.device),
        factor=64 / matrix.size,
        shrink=1 / triton.next_power_of_2(matrix.num_stacked),
        stages=2 if matrix.width <= 1024 and matrix.num_stacked > 1 else 1,
        sizes={"S": matrix.num_stacked, "R": rows, "P": p, "Q": q, "num_warps": _WARPS},
    )


def kind_of(x: Tensor, dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of the products: codes are exact in float16, which has more digits than bfloat16."""
    if dtype == torch.float32 or x.device.type == "cpu":  # interpreted: there are no products of bfloat16
        return torch.float32
    return torch.float16 if x.dtype == torch.int8 else dtype


@cache
def _signs_matrix(size: int, value: float, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return the Walsh-Hadamard matrix of a power of two, of plus and minus `value`."""
    return (hadamard_matrix(size, torch.float64, torch.device("cpu")).sign() * value).to(device, dtype)
