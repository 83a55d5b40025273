"""Head product and cross-entropy in one on a GPU: logits of a stretch of rows at a time, gradients with the loss."""

# Shapes: M positions, K width, V vocabulary.

import torch
import triton
import triton.language as tl
from torch import Tensor

from rcdist.ops.product_triton import dense_product, scale_rows

_CHUNK = 2**26
"""Logits that exist at a time: 256 MiB in float32."""


@triton.jit
def _cross_entropy_kernel(
    logits, targets, weights, nats, gradient, width, IS_TRAINED: tl.constexpr, BLOCK: tl.constexpr
):
    m = tl.program_id(0)
    row = m.to(tl.int64) * width
    i = tl.arange(0, BLOCK)
    largest = tl.full([BLOCK], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK], tl.float32)
    for first in range(0, width, BLOCK):
        value = tl.load(logits + row + first + i, mask=first + i < width, other=float("-inf"))
        most = tl.maximum(largest, value)
        # Where nothing but -inf was seen, -inf - -inf must not become NaN.
        base = tl.where(most == float("-inf"), 0.0, most)
        total = total * tl.exp(largest - base) + tl.exp(value - base)
        largest = most
    top = tl.max(largest)
    whole = tl.sum(total * tl.exp(largest - top))
    target, weight = tl.load(targets + m), tl.load(weights + m)
    # A target that is none makes the loss NaN, which stops or skips the step, instead of reading elsewhere.
    picked = tl.load(logits + row + target, mask=(target >= 0) & (target < width), other=float("nan"))
    tl.store(nats + m, weight * (tl.log(whole) + top - picked))
    if IS_TRAINED:
        factor = weight / whole
        for first in range(0, width, BLOCK):
            n = first + i
            value = tl.load(logits + row + n, mask=n < width, other=float("-inf"))
            value = tl.exp(value - top) * factor - tl.where(n == target, weight, 0.0)
            tl.store(gradient + row + n, value.to(gradient.dtype.element_ty), mask=n < width)


def compile_kernel(vocabulary: int, dtype: torch.dtype, device: torch.device) -> None:
    """Compile the kernel for training with a vocabulary and gradients of a dtype."""
    logits, one = torch.zeros(1, vocabulary, device=device), torch.ones(1, device=device)
    targets, gradient = torch.zeros(1, dtype=torch.int64, device=device), torch.empty_like(logits, dtype=dtype)
    _launch(logits, targets, one, torch.empty_like(one), gradient, is_trained=True)


def _launch(
    logits_MV: Tensor, targets_M: Tensor, weights_M: Tensor, nats_M: Tensor, gradient_MV: Tensor, *, is_trained: bool
) -> None:
    rows, vocabulary = logits_MV.shape
    _cross_entropy_kernel[(rows,)](
        *(logits_MV, targets_M, weights_M, nats_M, gradient_MV, vocabulary),
        IS_TRAINED=is_trained,
        BLOCK=min(triton.next_power_of_2(vocabulary), 4096),
        num_warps=8,
    )


def _add_product(total_VK: Tensor, a_VM: Tensor, b_MK: Tensor) -> None:
    """Add a b to float32 sums in place."""
    if total_VK.device.type == "cuda":
        torch.addmm(total_VK, a_VM, b_MK, out_dtype=torch.float32, out=total_VK)
    else:  # interpreted
        total_VK += a_VM @ b_MK


def forward(
    dtype: torch.dtype,
    values_MK: Tensor,
    rows_M: Tensor,
    ternary_VK: Tensor,
    beta: Tensor,
    targets_M: Tensor,
    weights_M: Tensor,
    *,
    is_trained: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Return the loss, and where it is trained the gradients of tokens and head for a gradient of 1 of the loss."""
    device = values_MK.device
    num_rows, vocabulary = len(values_MK), len(ternary_VK)
    chunk = min(max(_CHUNK // vocabulary, 1), num_rows)
    columns, wide = beta.expand(vocabulary), torch.empty(0, device=device)
    nats = torch.empty(num_rows, device=device)
    dtokens_MK = dweight_VK = None
    if is_trained:
        dlogits = torch.empty(chunk, vocabulary, dtype=dtype, device=device)
        dtokens_MK = torch.empty(values_MK.shape, dtype=dtype, device=device)
        dweight_VK = torch.zeros(ternary_VK.shape, device=device)
        matrix_VK = scale_rows(ternary_VK, columns, dtype)
    for first in range(0, num_rows, chunk):
        part = slice(first, min(first + chunk, num_rows))
        codes, rows = values_MK[part], rows_M[part]
        logits = dense_product(wide, codes, rows, ternary_VK, columns)
        gradient = dlogits if is_trained else logits
        _launch(logits, targets_M[part], weights_M[part], nats[part], gradient, is_trained=is_trained)
        if dtokens_MK is not None and dweight_VK is not None:
            torch.mm(dlogits[: len(codes)], matrix_VK, out=dtokens_MK[part])
            _add_product(dweight_VK, dlogits[: len(codes)].t(), scale_rows(codes, rows, dtype))
    return nats.sum(), dtokens_MK, dweight_VK
