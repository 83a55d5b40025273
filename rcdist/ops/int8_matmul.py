"""Product of int8 codes with a ternary matrix on a CPU, summed exactly: oneDNN, our own kernel, or float32."""

# Shapes: M rows, K summed, N outputs.

from typing import Literal

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from rcdist.ops import native
from rcdist.ops.matmul import matmul
from rcdist.ops.processor import Isa, has_amx, has_onednn_int8, isa

Kernel = Literal["onednn", "c++", "float32"]

_FEW_ROWS = 64
"""With fewer, packing a matrix takes as long as multiplying by it, and what was packed is kept."""

_LARGEST_EXACT = 2**24 // 128
"""Products of codes whose sum float32 holds exactly."""


def int8_kernel() -> Kernel:
    """Return who multiplies int8 codes in this process; all return the same sums.

    Our own C++ (AVX-512 VNNI, AVX-VNNI, AVX2, any other) scales its sums in the cache and packs a matrix once for many
    tokens that come one by one, so it is as fast as oneDNN or faster; but oneDNN has AMX. Without a compiler: oneDNN
    where it has int8 instructions, else float32.
    """
    if has_amx() or (has_onednn_int8() and not native.is_available()):
        return "onednn"
    return "c++" if native.is_available() else "float32"


def int8_matmul(codes_MK: Tensor, ternary_NK: Tensor, out: Tensor | None = None) -> Tensor:
    """Return codes ternary^T as int32, (M, N).

    Args:
        codes_MK: int8, contiguous.
        ternary_NK: int8, each -1, 0 or 1, contiguous.
        out: int32, (M, N), contiguous. None: a new tensor.

    Cost: 2 M N K operations.
    """
    if out is None:
        out = torch.empty(len(codes_MK), len(ternary_NK), dtype=torch.int32)
    kernel = int8_kernel()
    if kernel == "onednn":
        return torch._int_mm(codes_MK, ternary_NK.t(), out=out)
    if kernel == "c++":
        native.call("int8_sums", None, codes_MK, packed(ternary_NK, len(codes_MK)), out, *_sizes(codes_MK, ternary_NK))
        return out
    out.zero_()
    parts = zip(codes_MK.split(_LARGEST_EXACT, 1), ternary_NK.split(_LARGEST_EXACT, 1), strict=True)
    for codes, ternary in parts:
        out += matmul(codes.float(), ternary.float().t()).to(torch.int32)
    return out


def is_int8_on_cpu(a: Tensor, b: Tensor) -> bool:
    """Say whether both are int8 on a CPU, so that `int8_matmul` multiplies them."""
    return a.dtype == b.dtype == torch.int8 and a.device.type == "cpu"


def float_int8_matmul(codes_MK: Tensor, ternary_NK: Tensor) -> Tensor:
    """Return codes ternary^T in float32, (M, N)."""
    sums_MN = int8_matmul(codes_MK, ternary_NK)
    # Converted where they stand: a second buffer costs more than the conversion, above all for logits.
    return sums_MN.view(torch.float32).copy_(sums_MN)


def scaled_int8_matmul(like: Tensor, codes_MK: Tensor, rows_M: Tensor, ternary_NK: Tensor, columns_N: Tensor) -> Tensor:
    """Return (codes ternary^T) * rows * columns, (M, N) in the dtype of `like`; needs the compiled kernels."""
    num_rows, width = len(codes_MK), len(ternary_NK)
    out = torch.empty(num_rows, width, dtype=like.dtype)
    if int8_kernel() == "c++":
        arguments = (codes_MK, packed(ternary_NK, num_rows), rows_M, columns_N, out)
        native.call("int8_product", out, *arguments, *_sizes(codes_MK, ternary_NK))
        return out
    # Integer sums are scaled while they are still in the cache.
    chunk = max(_CHUNK // width, 16)
    sums = torch.empty(min(chunk, num_rows), width, dtype=torch.int32)
    for first in range(0, num_rows, chunk):
        part = codes_MK[first : first + chunk]
        int8_matmul(part, ternary_NK, out=sums[: len(part)])
        scales = (rows_M[first : first + chunk], columns_N)
        native.call("scale_sums", out, sums[: len(part)], *scales, out[first : first + chunk], width, len(part), width)
    return out


_CHUNK = 2**20
"""Integer sums that are scaled at a time: 4 MiB of them."""

_kept = WeakTensorKeyDictionary()


def packed(ternary_NK: Tensor, num_rows: int) -> Tensor:
    """Return a matrix as the C++ kernel reads it (ops/cpu/int8.cpp): a byte per weight, in panels.

    Where few rows are multiplied at a time, as in generation, the packed matrix is kept as long as the matrix lives.
    """
    state = (ternary_NK._version, isa())  # of what is packed: it may have been written to since
    kept: tuple[tuple[int, Isa], Tensor] | None = _kept.get(ternary_NK)
    if kept is not None and kept[0] == state:
        return kept[1]
    made = torch.empty(native.query("packed_bytes", *ternary_NK.shape), dtype=torch.uint8)
    native.call("pack_ternary", None, ternary_NK, made, *ternary_NK.shape)
    if num_rows < _FEW_ROWS:
        _kept[ternary_NK] = (state, made)
    return made


def _sizes(codes_MK: Tensor, ternary_NK: Tensor) -> tuple[int, int, int]:
    return len(codes_MK), *ternary_NK.shape
