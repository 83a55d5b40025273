"""Triton kernels for products of int8 tokens with ternary matrices of two bits a weight, as generation needs them."""

# Shapes: M tokens, K inputs, N outputs. A byte holds the weights of inputs i, i + K/4, i + K/2 and i + 3K/4, plus one.

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from rcdist.ops.product_triton import dense_product
from rcdist.ops.triton_common import early, wait_for_inputs

_MOST_ROWS = 128
"""With more, the matrix is unpacked first: that costs less than to unpack it for each tile of rows."""
_MOST_MATRICES = 3
_ALIGNED = 16
"""A word of codes, in each quarter of the inputs."""


def fits(inputs: int) -> bool:
    """Say whether there are kernels for matrices of so many inputs."""
    return inputs % _ALIGNED == 0


@triton.jit
def _choose(a, b, c, which):
    """Return the first, second or third pointer."""
    chosen = a
    if which == 1:
        chosen = b
    elif which == 2:
        chosen = c
    return chosen


@triton.jit
def _dot_of_bytes(weights, codes, total, ON_GPU: tl.constexpr):
    """Return total + the sum of the products of four int8 each, in int32."""
    if ON_GPU:
        return tl.inline_asm_elementwise(
            "dp4a.s32.s32 $0, $1, $2, $3;", "=r,r,r,r", [weights, codes, total], dtype=tl.int32, is_pure=True, pack=1
        )
    for b in tl.static_range(4):  # interpreted
        total += ((weights >> (8 * b)) & 255) * ((codes << (24 - 8 * b)) >> 24)
    return total


@triton.jit
def _row_kernel(
    codes, row, w0, w1, w2, c0, c1, c2, out0, out1, out2, n0, n1, n2, step0, step1, step2, tiles0, tiles1, words,
    ON_GPU: tl.constexpr, EARLY: tl.constexpr, BN: tl.constexpr, BW: tl.constexpr,
):  # fmt: skip
    """Multiply one row of codes by up to three matrices; a program has BN outputs of one of them."""
    program = tl.program_id(0)
    which = (program >= tiles0).to(tl.int32) + (program >= tiles0 + tiles1).to(tl.int32)
    tile = program - tl.where(which >= 1, tiles0, 0) - tl.where(which == 2, tiles1, 0)
    size = tl.where(which == 0, n0, tl.where(which == 1, n1, n2))
    step = tl.where(which == 0, step0, tl.where(which == 1, step1, step2))
    weights = _choose(w0, w1, w2, which)
    n = tile * BN + tl.arange(0, BN)
    i = tl.arange(0, BW)
    inside_n = n < size
    sums = tl.zeros([BN, BW], tl.int32)
    excess = tl.zeros([1, BW], tl.int32)
    ones = tl.full([1, BW], 0x01010101, tl.int32)
    # Weights do not change: those of the first inputs are on their way before what makes the codes is done.
    place = weights + n.to(tl.int64)[:, None] * words + i[None, :]
    following = tl.load(place, mask=inside_n[:, None] & (i < words)[None, :], other=0)
    wait_for_inputs(EARLY)
    for first in range(0, words, BW):
        inside = first + i < words
        packed = following
        ahead = inside_n[:, None] & (first + BW + i < words)[None, :]
        following = tl.load(place + first + BW, mask=ahead, other=0)
        for j in tl.static_range(4):
            four = tl.load(codes + j * words + first + i, mask=inside, other=0)[None, :]
            excess = _dot_of_bytes(ones, four, excess, ON_GPU)
            spread = tl.broadcast_to(four, [BN, BW])
            sums = _dot_of_bytes((packed >> (2 * j)) & 0x03030303, spread, sums, ON_GPU)
    exact = tl.sum(sums, 1) - tl.sum(excess)
    column = tl.load(_choose(c0, c1, c2, which) + n * step, mask=inside_n, other=0.0)
    value = exact.to(tl.float32) * tl.load(row) * column
    out = _choose(out0, out1, out2, which)
    tl.store(out + n, value.to(out0.dtype.element_ty), mask=inside_n)


@triton.jit
def _rows_kernel(
    codes, rows, weights, columns, out, M, N, K, columns_step, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr
):
    """Multiply some rows of codes by one matrix; a program has BN outputs of BM rows."""
    m = tl.program_id(1) * BM + tl.arange(0, BM)
    n = tl.program_id(0) * BN + tl.arange(0, BN)
    k = tl.arange(0, BK)
    quarter = K // 4
    left = codes + (m % M).to(tl.int64)[:, None] * K + k[None, :]
    right = weights + (n % N).to(tl.int64)[None, :] * quarter + k[:, None]
    sums = tl.zeros([BM, BN], tl.int32)
    for first in range(0, quarter, BK):
        inside = k < quarter - first
        packed = tl.load(right + first, mask=inside[:, None], other=0)
        for j in tl.static_range(4):
            a = tl.load(left + j * quarter + first, mask=inside[None, :], other=0)
            b = ((packed >> (2 * j)) & 3).to(tl.int8) - 1
            sums = tl.dot(a, b, sums, out_dtype=tl.int32)
    row = tl.load(rows + m, mask=m < M, other=0.0)
    column = tl.load(columns + n * columns_step, mask=n < N, other=0.0)
    value = sums.to(tl.float32) * row[:, None] * column[None, :]
    place = out + m.to(tl.int64)[:, None] * N + n[None, :]
    tl.store(place, value.to(out.dtype.element_ty), mask=(m < M)[:, None] & (n < N)[None, :])


@triton.jit
def _unpack_kernel(packed, ternary, size, quarter, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < size
    four = tl.load(packed + at, mask=inside, other=0)
    place = ternary + at // quarter * (4 * quarter) + at % quarter
    for j in tl.static_range(4):
        tl.store(place + j * quarter, ((four >> (2 * j)) & 3).to(tl.int8) - 1, mask=inside)


def unpack(packed_NQ: Tensor) -> Tensor:
    """Return the table of -1, 0, 1 that lies in the bytes, int8 (N, K)."""
    outputs, quarter = packed_NQ.shape
    ternary_NK = torch.empty(outputs, 4 * quarter, dtype=torch.int8, device=packed_NQ.device)
    block = 2048
    grid = (triton.cdiv(packed_NQ.numel(), block),)
    _unpack_kernel[grid](packed_NQ, ternary_NK, packed_NQ.numel(), quarter, BLOCK=block, num_warps=4)
    return ternary_NK


def products(
    like: Tensor, codes_MK: Tensor, rows_M: Tensor, packed: Sequence[Tensor], columns: Sequence[Tensor]
) -> list[Tensor]:
    """Return (codes A^T) * rows * columns for each matrix, (M, N) in the dtype of `like`.

    One row at a time, as in generation, up to three matrices are one launch, which takes the time of reading them.
    """
    if len(codes_MK) == 1:
        outputs = []
        for first in range(0, len(packed), _MOST_MATRICES):
            part = slice(first, first + _MOST_MATRICES)
            outputs += _multiply_row(like, codes_MK, rows_M, packed[part], columns[part])
        return outputs
    return [_multiply_rows(like, codes_MK, rows_M, *each) for each in zip(packed, columns, strict=True)]


def _multiply_row(
    like: Tensor, codes_MK: Tensor, rows_M: Tensor, packed: Sequence[Tensor], columns: Sequence[Tensor]
) -> list[Tensor]:
    sizes = [len(each) for each in packed]
    outputs = [torch.empty(1, size, dtype=like.dtype, device=like.device) for size in sizes]
    steps = [each.stride(0) for each in columns]
    # As words of four codes, and of sixteen weights.
    words = [each.view(torch.int32) for each in packed]
    block = _row_tile(sum(sizes), words[0].shape[1], like.device.type == "cuda")
    tiles = [triton.cdiv(size, block["BN"]) for size in sizes]

    def three(values: Sequence[object]) -> list[object]:
        return [*values, *[values[-1]] * (_MOST_MATRICES - len(values))]

    arguments = (
        *(codes_MK.view(torch.int32), rows_M),
        *(*three(words), *three(columns), *three(outputs), *three(sizes), *three(steps)),
        *(tiles[0], tiles[1] if len(tiles) > 1 else 0, words[0].shape[1]),
    )
    _row_kernel[(sum(tiles),)](*arguments, **block, **early(1, like.device))
    return outputs


def _row_tile(outputs: int, words: int, on_gpu: bool) -> dict[str, int]:
    """Return the tile and warps of a program: as fast as others or faster at the shapes of 370m and 1.3b on an H100."""
    if not on_gpu:
        return {"ON_GPU": 0, "BN": 8, "BW": 16}
    if words > 256:
        return {"ON_GPU": 1, "BN": 4, "BW": 512, "num_warps": 2}
    narrow = outputs <= 8192
    return {"ON_GPU": 1, "BN": 8 if narrow else 4, "BW": 64, "num_warps": 4 if narrow else 1}


def _multiply_rows(like: Tensor, codes_MK: Tensor, rows_M: Tensor, packed_NQ: Tensor, columns_N: Tensor) -> Tensor:
    (num_rows, inputs), outputs = codes_MK.shape, len(packed_NQ)
    if num_rows > _MOST_ROWS:
        return dense_product(like, codes_MK, rows_M, unpack(packed_NQ), columns_N)
    out = torch.empty(num_rows, outputs, dtype=like.dtype, device=like.device)
    block = _rows_tile(num_rows, like.device.type == "cuda")
    grid = (triton.cdiv(outputs, block["BN"]), triton.cdiv(num_rows, block["BM"]))
    arguments = (codes_MK, rows_M, packed_NQ, columns_N, out, num_rows, outputs, inputs, columns_N.stride(0))
    _rows_kernel[grid](*arguments, **block)
    return out


def _rows_tile(num_rows: int, on_gpu: bool) -> dict[str, int]:
    """Return the tile and warps of a program; chosen likewise."""
    if not on_gpu:
        return {"BM": 16, "BN": 32, "BK": 32}
    # Not 64 rows: the instructions for that many take weights from shared memory only.
    few = num_rows <= 16
    return {"BM": 16 if few else 32, "BN": 32 if few else 64, "BK": 128, "num_warps": 4}
