"""What the Triton kernels share: rounding, and how much of the device a launch takes."""

import os
from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor

# Two multiplications and an addition may be fused, as in the other backends.
os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")


@triton.jit
def wait_for_inputs(EARLY: tl.constexpr):
    """Let the next kernel be launched, and wait until what the kernel before has written is there; see `early`."""
    if EARLY:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()


@triton.jit
def round_to_nearest(x):
    """Round float32 of magnitude below 2^22 to the nearest integer, ties to even."""
    return (x + 12582912.0) - 12582912.0


@triton.jit
def load_sum(x, delta, x_new, i, inside, HAS_DELTA: tl.constexpr):
    """Load a row of x, or of x + delta, which is stored in x_new and goes on as it was rounded there; float32."""
    value = tl.load(x + i, mask=inside, other=0.0).to(tl.float32)
    if HAS_DELTA:
        value += tl.load(delta + i, mask=inside, other=0.0).to(tl.float32)
        rounded = value.to(x_new.dtype.element_ty)
        tl.store(x_new + i, rounded, mask=inside)
        value = rounded.to(tl.float32)
    return value


@triton.jit
def load_factor(at, inside):
    """Load factors of channels; 2^-64 for 0: of what is exactly 0 nobody could tell the factor's gradient."""
    factor = tl.load(at, mask=inside, other=1.0).to(tl.float32)
    return tl.where(factor == 0.0, 5.421010862427522e-20, factor)


@triton.jit
def store_rounded(z, codes, scale, i, inside):
    """Store the int8 codes of a row, and its scale."""
    # A maximum drops NaN: what is not finite must reach the scale.
    largest = tl.maximum(tl.max(tl.abs(z)), 1e-5) + tl.sum(z) * 0.0
    tl.store(codes + i, round_to_nearest(z * (127.0 / largest)).to(tl.int8), mask=inside)
    tl.store(scale, largest / 127.0)


_WARPS = 16
"""Warps on a multiprocessor of a kernel that loops over rows: the fastest of 16, 32, 48 and 64 on an H100."""


def num_warps(block: int, channels: int) -> int:
    """Return warps for a program that holds `block` channels of a row, so many a thread."""
    return min(max(block // (32 * channels), 1), 16)


_FEW_ROWS = 512


def early(rows: int, device: torch.device) -> dict[str, bool]:
    """Return launch options of a kernel that calls `wait_for_inputs` before it touches what others write or read.

    With few rows a kernel takes as long as its launch: the next one is then launched while it runs, and waits for its
    end where it needs it (programmatic dependent launch, from Hopper on).
    """
    if rows <= _FEW_ROWS and device.type == "cuda" and _has_early_launch(device):
        return {"EARLY": True, "launch_pdl": True}
    return {"EARLY": False}


@cache
def _has_early_launch(device: torch.device) -> bool:
    return torch.cuda.get_device_capability(device)[0] >= 9


def forward_warps(block: int, channels: int, rows: int) -> int:
    """Return warps for a program that holds `block` channels of one of so many rows.

    A few rows leave most of a GPU idle, and the time is that of one row: it takes more threads, of 8 channels (1 and
    64 rows at width 2048, of 4, 8, 16 and 32 on an H100).
    """
    return num_warps(block, 8 if rows <= _FEW_ROWS else channels)


def num_programs(x: Tensor, rows: int, warps: int) -> int:
    """Return programs of a kernel that loops over rows and sums over them: enough to fill the device."""
    return min(rows, max(_WARPS // warps, 1) * multiprocessors(x.device))


@triton.jit
def _column_sums_kernel(x, out, rows, width, TILE: tl.constexpr, BLOCK: tl.constexpr):
    part = tl.program_id(1).to(tl.int64)
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    k = tl.arange(0, TILE)
    sums = tl.zeros([TILE, BLOCK], tl.float32)
    for first in range(0, rows, TILE):
        inside = (first + k < rows)[:, None] & (i < width)[None, :]
        sums += tl.load(x + (part * rows + first + k)[:, None] * width + i[None, :], mask=inside, other=0.0)
    tl.store(out + part * width + i, tl.sum(sums, 0).to(out.dtype.element_ty), mask=i < width)


def column_sums(x_PRN: Tensor, dtype: torch.dtype) -> Tensor:
    """Sum float32 over the rows of each of P matrices, (P, R, N) to (P, N), in one launch, in a fixed order."""
    parts, rows, width = x_PRN.shape
    out = torch.empty(parts, width, dtype=dtype, device=x_PRN.device)
    block = 32
    _column_sums_kernel[(triton.cdiv(width, block), parts)](x_PRN, out, rows, width, TILE=64, BLOCK=block, num_warps=4)
    return out


@cache
def multiprocessors(device: torch.device) -> int:
    """Return how many a GPU has; 1 for the interpreter."""
    if device.type != "cuda":
        return 1
    return int(torch.cuda.get_device_properties(device).multi_processor_count)
