"""Triton kernels around products: int8 product with scales, codes to float, the gradient of a gain."""

# Shapes: M tokens, K inputs, N outputs.

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from rcdist.ops.triton_common import column_sums, load_factor, multiprocessors

_CONFIGS = [
    triton.Config({"BM": 128, "BN": 256, "BK": 128}, num_warps=8, num_stages=3),
    triton.Config({"BM": 128, "BN": 128, "BK": 128}, num_warps=8, num_stages=3),
    triton.Config({"BM": 128, "BN": 128, "BK": 64}, num_warps=4, num_stages=4),
    triton.Config({"BM": 64, "BN": 128, "BK": 128}, num_warps=4, num_stages=3),
    triton.Config({"BM": 16, "BN": 128, "BK": 128}, num_warps=4, num_stages=4),
]
"""Tiles that are tried at the first use of a size."""


@triton.jit
def product_kernel(
    codes, ternary, rows, columns, out, M, N, K, columns_step, rows_class,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """Store (codes ternary^T) * rows * columns; blocks of rows follow one another, so that the matrix stays near."""
    program, tiles_n = tl.program_id(0), tl.cdiv(N, BN)
    group = 8 * tiles_n
    first = program // group * 8
    height = tl.minimum(tl.cdiv(M, BM) - first, 8)
    m = (first + program % group % height) * BM + tl.arange(0, BM)
    n = program % group // height * BN + tl.arange(0, BN)
    k = tl.arange(0, BK)
    left = codes + (m % M).to(tl.int64)[:, None] * K + k[None, :]
    right = ternary + (n % N).to(tl.int64)[None, :] * K + k[:, None]
    sums = tl.zeros([BM, BN], tl.int32)
    for k0 in range(0, K, BK):
        inside = k < K - k0
        a = tl.load(left, mask=inside[None, :], other=0)
        b = tl.load(right, mask=inside[:, None], other=0)
        sums = tl.dot(a, b, sums, out_dtype=tl.int32)
        left += BK
        right += BK
    row = tl.load(rows + m, mask=m < M, other=0.0)
    column = tl.load(columns + n * columns_step, mask=n < N, other=0.0)
    value = sums.to(tl.float32) * row[:, None] * column[None, :]
    place = out + m.to(tl.int64)[:, None] * N + n[None, :]
    tl.store(place, value.to(out.dtype.element_ty), mask=(m < M)[:, None] & (n < N)[None, :])


def dense_product(like: Tensor, codes_MK: Tensor, rows_M: Tensor, ternary_NK: Tensor, columns_N: Tensor) -> Tensor:
    """Return (codes ternary^T) * rows * columns, (M, N) in the dtype of `like`."""
    (num_rows, inputs), outputs = codes_MK.shape, len(ternary_NK)
    out = torch.empty(num_rows, outputs, dtype=like.dtype, device=like.device)

    def grid(meta: dict[str, int]) -> tuple[int]:
        return (triton.cdiv(num_rows, meta["BM"]) * triton.cdiv(outputs, meta["BN"]),)

    rows_class = min(triton.next_power_of_2(num_rows), 8192)
    sizes = (num_rows, outputs, inputs, columns_N.stride(0), rows_class)
    arguments = (codes_MK, ternary_NK, rows_M, columns_N, out, *sizes)
    if like.device.type == "cuda":
        _tuned_product()[grid](*arguments)
    else:  # interpreted: there is no device to time tiles on
        product_kernel[grid](*arguments, BM=16, BN=32, BK=32)
    return out


_MANY_ROWS, _FEW_ROWS = 1024, 64


def _likely(configs: list[triton.Config], arguments: dict[str, Any], **_: Any) -> list[triton.Config]:
    """Leave the tiles that may be the fastest for so many rows: to compile one takes a second."""
    rows = arguments["rows_class"]
    first, last = (0, 3) if rows >= _MANY_ROWS else (2, 4) if rows > _FEW_ROWS else (3, 5)
    return configs[first:last]


def _seconds_of(call: Callable[[], None], quantiles: Sequence[float]) -> Any:
    return triton.testing.do_bench(call, warmup=5, rep=20, quantiles=quantiles)


@cache
def _tuned_product() -> Any:
    return triton.autotune(
        configs=_CONFIGS,
        key=["rows_class", "N", "K"],
        prune_configs_by={"early_config_prune": _likely},
        do_bench=_seconds_of,
        cache_results=True,  # beside the compiled kernels: the next start on this machine tries nothing
    )(product_kernel)


def compile_tile(tile: int, dtype: torch.dtype, device: torch.device) -> None:
    """Compile the product for one of the tiles that many tokens are tried with, for outputs of a dtype."""
    config, size = _CONFIGS[tile], 256
    codes = torch.zeros(size, size, dtype=torch.int8, device=device)
    rows, out = torch.zeros(size, device=device), torch.empty(size, size, dtype=dtype, device=device)
    grid = (triton.cdiv(size, config.kwargs["BM"]) * triton.cdiv(size, config.kwargs["BN"]),)
    options = config.kwargs | {"num_warps": config.num_warps, "num_stages": config.num_stages}
    product_kernel[grid](codes, codes, rows, rows[0].expand(size), out, size, size, size, 0, size, **options)


@triton.jit
def _scale_rows_kernel(codes, rows, out, size, width, rows_step, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < size
    scale = tl.load(rows + at // width * rows_step, mask=inside, other=0)
    value = tl.load(codes + at, mask=inside, other=0).to(tl.float32) * scale
    tl.store(out + at, value.to(out.dtype.element_ty), mask=inside)


def scale_rows(codes_MK: Tensor, rows_M: Tensor, dtype: torch.dtype, out: Tensor | None = None) -> Tensor:
    """Return codes * rows, (M, K) of a float dtype; out: written over instead of a new tensor."""
    if out is None:
        out = torch.empty(codes_MK.shape, dtype=dtype, device=codes_MK.device)
    block = 4096
    grid = (triton.cdiv(codes_MK.numel(), block),)
    sizes = (codes_MK.numel(), codes_MK.shape[1], rows_M.stride(0))
    _scale_rows_kernel[grid](codes_MK.contiguous(), rows_M, out, *sizes, BLOCK=block, num_warps=8)
    return out


@triton.jit
def _gain_gradient_kernel(dy, y, gain, out, num_rows, width, chunk, TILE: tl.constexpr, BLOCK: tl.constexpr):
    part = tl.program_id(1)
    n = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    k = tl.arange(0, TILE)
    sums = tl.zeros([TILE, BLOCK], tl.float32)
    stop = tl.minimum((part + 1) * chunk, num_rows)
    for first in range(part * chunk, stop, TILE):
        m = (first + k).to(tl.int64)
        inside = (m < stop)[:, None] & (n < width)[None, :]
        at = m[:, None] * width + n[None, :]
        left = tl.load(dy + at, mask=inside, other=0.0).to(tl.float32)
        sums += left * tl.load(y + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + part * width + n, tl.sum(sums, 0) / load_factor(gain + n, n < width), mask=n < width)


def gain_gradient(dy_MN: Tensor, y_MN: Tensor, gain_N: Tensor) -> Tensor:
    """Return the sum over tokens of dy * y / gain, (N,) in the dtype of the gain; one read of both."""
    rows, width = dy_MN.shape
    tile, block = 16, 256
    blocks = triton.cdiv(width, block)
    chunk = max(triton.cdiv(rows * blocks, 8 * multiprocessors(dy_MN.device)), tile)
    chunks = triton.cdiv(rows, chunk)
    sums = torch.empty(1, chunks, width, device=dy_MN.device)
    _gain_gradient_kernel[(blocks, chunks)](
        *(dy_MN, y_MN, gain_N, sums, rows, width, chunk), TILE=tile, BLOCK=block, num_warps=4
    )
    return column_sums(sums, gain_N.dtype)[0]
