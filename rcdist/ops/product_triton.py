"""Triton kernels around the products: int8 product with scales, codes to float, and the hadamard topology."""

# Shapes: M tokens, K inputs, N outputs; W width of a transform over runs of P x Q channels.

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from rcdist.ops.topology import HadamardMap
from rcdist.ops.topology.hadamard import hadamard_matrix

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
def _transform(x, h_p, h_q, R: tl.constexpr, W: tl.constexpr, P: tl.constexpr, Q: tl.constexpr, FULL: tl.constexpr):  # fmt: skip
    """Transform runs of P x Q channels of (R, W); the result holds each run transposed, Q x P."""
    RUNS: tl.constexpr = R * W // (P * Q)
    if FULL:
        x = tl.dot(tl.reshape(x, [RUNS * P, Q]), h_q, input_precision="ieee")
        x = tl.reshape(tl.trans(tl.reshape(x, [RUNS, P, Q]), 0, 2, 1), [RUNS * Q, P])
        x = tl.dot(x, h_p, input_precision="ieee")
    else:
        x = tl.dot(tl.reshape(x, [RUNS * P, Q]), h_q, input_precision="tf32")
        x = tl.reshape(tl.trans(tl.reshape(x, [RUNS, P, Q]), 0, 2, 1), [RUNS * Q, P])
        x = tl.dot(x, h_p, input_precision="tf32")
    return tl.reshape(x, [R, W])


@triton.jit
def _untransposed(x, R: tl.constexpr, W: tl.constexpr, P: tl.constexpr, Q: tl.constexpr):
    return tl.reshape(tl.trans(tl.reshape(x, [R * W // (P * Q), Q, P]), 0, 2, 1), [R, W])


@triton.jit
def _stage_kernel(
    x, x_stride, width_in, before, index, after, rows, columns, h_p, h_q, out, out_stride, width_out, num_rows,
    GATHER: tl.constexpr, BEFORE: tl.constexpr, STACKED_IN: tl.constexpr, COLUMNS_IN: tl.constexpr, AFTER: tl.constexpr, ROWS: tl.constexpr,
    COLUMNS_OUT: tl.constexpr, FULL: tl.constexpr,
    R: tl.constexpr, W: tl.constexpr, P: tl.constexpr, Q: tl.constexpr,
):  # fmt: skip
    """Do one half of the topology: out = scales * flip * transform(flip * gathered x)."""
    m, s = tl.program_id(0) * R + tl.arange(0, R), tl.program_id(1)
    i = tl.arange(0, W)
    row = m.to(tl.int64)[:, None]
    source = i
    if GATHER:
        source = tl.load(index + s * W + i)
    if STACKED_IN:
        source += s * W
    inside = (m < num_rows)[:, None] & (source < width_in)[None, :]
    value = tl.load(x + row * x_stride + source[None, :], mask=inside, other=0).to(tl.float32)
    if BEFORE:
        value *= tl.load(before + s * 2 * W + i).to(tl.float32)[None, :]
    if COLUMNS_IN:
        value *= tl.load(columns + s * W + i, mask=i < width_in - s * W, other=0.0)[None, :]
    p = tl.arange(0, P)
    q = tl.arange(0, Q)
    hp, hq = tl.load(h_p + p[:, None] * P + p[None, :]), tl.load(h_q + q[:, None] * Q + q[None, :])
    value = _untransposed(_transform(value, hp, hq, R, W, P, Q, FULL), R, W, P, Q)
    if AFTER:
        value *= tl.load(after + s * 2 * W + i).to(tl.float32)[None, :]
    if ROWS:
        value *= tl.load(rows + m, mask=m < num_rows, other=0.0)[:, None]
    if COLUMNS_OUT:
        value *= tl.load(columns + s * W + i, mask=i < width_out - s * W, other=0.0)[None, :]
    place = out + row * out_stride + (s * W + i)[None, :]
    inside = (m < num_rows)[:, None] & (i < width_out - s * W)[None, :]
    tl.store(place, value.to(out.dtype.element_ty), mask=inside)


def hadamard_is_fused(matrix: HadamardMap) -> bool:
    """Say whether the kernels take this matrix: a width that is one run of a power of two, at least 256."""
    width = matrix.signs_S2W.shape[2]
    return matrix.size == width and 256 <= width <= 4096


def hadamard_expand(
    x: Tensor, rows_M: Tensor | None, columns_N: Tensor | None, matrix: HadamardMap, dtype: torch.dtype
) -> Tensor:
    """Return the stacked transforms of x (M, W), each output scaled by its row and column, (M, N)."""
    stacked, _, width = matrix.signs_S2W.shape
    outputs = max(matrix.shape)
    middle = torch.empty(len(x), stacked * width, dtype=dtype, device=x.device)
    out = torch.empty(len(x), outputs, dtype=dtype, device=x.device)
    signs, second = matrix.signs_S2W, matrix.signs_S2W[:, 1]
    _stage(x, width, signs, None, None, None, middle, matrix, stacked * width)
    _stage(middle, stacked * width, second, matrix.permutation_SW, rows_M, columns_N, out, matrix, outputs,
           stacked_in=True)  # fmt: skip
    return out


def hadamard_contract(
    y: Tensor, rows_M: Tensor | None, columns_in: Tensor | None, matrix: HadamardMap, dtype: torch.dtype
) -> Tensor:
    """Return the transpose of `hadamard_expand` of y * columns_in, (M, W)."""
    stacked, _, width = matrix.signs_S2W.shape
    middle = torch.empty(len(y), stacked * width, dtype=dtype, device=y.device)
    out = torch.empty(len(y), stacked * width, dtype=dtype, device=y.device)
    second = matrix.signs_S2W[:, 1]
    _stage(y, y.shape[1], None, None, None, columns_in, middle, matrix, stacked * width, stacked_in=True,
           after=second, scales_in=True)  # fmt: skip
    _stage(middle, stacked * width, None, matrix.inverse_SW, rows_M, None, out, matrix, stacked * width,
           stacked_in=True, after=matrix.signs_S2W)  # fmt: skip
    return out if stacked == 1 else out.view(len(y), stacked, width).sum(1)


def _stage(
    x: Tensor,
    width_in: int,
    before: Tensor | None,
    index: Tensor | None,
    rows_M: Tensor | None,
    columns: Tensor | None,
    out: Tensor,
    matrix: HadamardMap,
    width_out: int,
    *,
    stacked_in: bool = False,
    after: Tensor | None = None,
    scales_in: bool = False,
) -> None:
    stacked, _, width = matrix.signs_S2W.shape
    log = matrix.size.bit_length() - 1
    p, q = 1 << log // 2, 1 << (log - log // 2)
    # The Hadamard matrices are orthonormal already: nothing is left to scale.
    h_p, h_q = (hadamard_matrix(size, torch.float32, x.device) for size in (p, q))
    per_program = max(4096 // width, 1)
    nothing = x
    _stage_kernel[(triton.cdiv(len(x), per_program), stacked)](
        *(x, x.stride(0), width_in, nothing if before is None else before, nothing if index is None else index),
        *(nothing if after is None else after, nothing if rows_M is None else rows_M),
        *(nothing if columns is None else columns, h_p, h_q, out, out.stride(0), width_out, len(x)),
        GATHER=index is not None,
        BEFORE=before is not None,
        STACKED_IN=stacked_in,
        COLUMNS_IN=columns is not None and scales_in,
        AFTER=after is not None,
        ROWS=rows_M is not None,
        COLUMNS_OUT=columns is not None and not scales_in,
        FULL=out.dtype == torch.float32,
        R=per_program,
        W=width,
        P=p,
        Q=q,
        num_warps=8,
    )
