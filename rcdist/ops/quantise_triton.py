"""Rounding of a trained matrix to ternary as two Triton kernels: its mean absolute value, and its codes."""

# Shapes: N outputs, K inputs; P programs.

import torch
import triton
import triton.language as tl
from torch import Tensor

from rcdist.ops.quantise import Quantised
from rcdist.ops.triton_common import round_to_nearest

_BLOCK = 4096
_MOST_SUMS = 1024


@triton.jit
def _sum_kernel(weight, sums, size, BLOCK: tl.constexpr):
    program, count = tl.program_id(0), tl.num_programs(0)
    total = tl.zeros([BLOCK], tl.float32)
    for first in range(program * BLOCK, size, count * BLOCK):
        at = first + tl.arange(0, BLOCK)
        total += tl.abs(tl.load(weight + at, mask=at < size, other=0.0).to(tl.float32))
    tl.store(sums + program, tl.sum(total))


@triton.jit
def _round_kernel(weight, sums, codes, beta, size, num_sums, SUMS: tl.constexpr, BLOCK: tl.constexpr):
    k = tl.arange(0, SUMS)
    mean = tl.sum(tl.load(sums + k, mask=k < num_sums, other=0.0)) / size
    # A maximum drops NaN unless told not to: a weight that is NaN must not pass for one that is 0.
    mean = tl.maximum(mean, 1e-5, propagate_nan=tl.PropagateNan.ALL)
    if tl.program_id(0) == 0:
        tl.store(beta, mean)
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    value = tl.load(weight + at, mask=at < size, other=0.0).to(tl.float32) / mean
    # Clipped first: what is far outside would not be rounded exactly.
    value = round_to_nearest(tl.minimum(tl.maximum(value, -1.0), 1.0))
    tl.store(codes + at, value.to(tl.int8), mask=at < size)


def forward(weight_NK: Tensor, out: Quantised | None = None) -> Quantised:
    """Round a matrix as `ops.quantise.quantise_weight` does; the sum is taken in another order.

    Args:
        weight_NK: any float dtype, fewer than 2^31 elements.
        out: of an earlier call, to be written over. None: new tensors.
    """
    weight, size = weight_NK.detach().contiguous(), weight_NK.numel()
    if out is None:
        codes = torch.empty(weight.shape, dtype=torch.int8, device=weight.device)
        out = Quantised(weight_NK, codes, torch.empty((), device=weight.device))
    num_sums = min(triton.cdiv(size, _BLOCK), _MOST_SUMS)
    sums = torch.empty(num_sums, device=weight.device)
    _sum_kernel[(num_sums,)](weight, sums, size, BLOCK=_BLOCK, num_warps=8)
    blocks = (triton.cdiv(size, _BLOCK),)
    _round_kernel[blocks](
        *(weight, sums, out.values, out.scale, size, num_sums), SUMS=_MOST_SUMS, BLOCK=_BLOCK, num_warps=8
    )
    return out
