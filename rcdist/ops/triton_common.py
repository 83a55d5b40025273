"""What the Triton kernels share: rounding, and how much of the device a launch takes."""

import os
from functools import cache

import torch
import triton
import triton.language as tl  # noqa: F401  Triton's interpreter demands it where a kernel's function is defined
from torch import Tensor

# Two multiplications and an addition may be fused, as in the other backends.
os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")


@triton.jit
def round_to_nearest(x):
    """Round float32 of magnitude below 2^22 to the nearest integer, ties to even."""
    return (x + 12582912.0) - 12582912.0


def num_warps(block: int) -> int:
    """Return warps for a program that holds `block` channels of a row: about 8 channels a thread."""
    return min(max(triton.next_power_of_2(block // 256), 1), 16)


def num_programs(x: Tensor, rows: int) -> int:
    """Return programs of a kernel that loops over rows and sums over them: enough to fill the device."""
    return min(rows, 4 * _multiprocessors(x.device))


@cache
def _multiprocessors(device: torch.device) -> int:
    if device.type != "cuda":
        return 1
    return int(torch.cuda.get_device_properties(device).multi_processor_count)
