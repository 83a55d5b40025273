"""Head product and cross-entropy in one on a GPU: logits of a stretch of rows at a time, gradients with the loss."""

# Shapes: M positions, K width, V vocabulary.

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from rcdist.ops.product_triton import dense_product, scale_rows
from rcdist.ops.project import Trained, quantised_weight
from rcdist.ops.quantise import Quantised

_CHUNK = 2**26
"""Logits that exist at a time: 256 MiB in float32."""


def linear_cross_entropy_triton(
    tokens: Quantised, head: Trained, targets_M: Tensor, weights_M: Tensor | None
) -> Tensor:
    """Compute `ops.cross_entropy.linear_cross_entropy` with Triton."""
    rounded = quantised_weight(head.weight_NK)
    device = tokens.handle.device
    weights_M = torch.ones(len(targets_M), device=device) if weights_M is None else weights_M.float().contiguous()
    loss: Tensor = _LinearCrossEntropy.apply(
        *tokens, head.weight_NK, rounded.values, rounded.scale, targets_M.contiguous(), weights_M
    )
    return loss


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
    tl.store(nats + m, weight * (tl.log(whole) + top - tl.load(logits + row + target)))
    if IS_TRAINED:
        factor = weight / whole
        for first in range(0, width, BLOCK):
            n = first + i
            value = tl.load(logits + row + n, mask=n < width, other=float("-inf"))
            value = tl.exp(value - top) * factor - tl.where(n == target, weight, 0.0)
            tl.store(gradient + row + n, value.to(gradient.dtype.element_ty), mask=n < width)


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        handle: Tensor,
        values_MK: Tensor,
        token_scale: Tensor,
        weight: Tensor,
        ternary_VK: Tensor,
        beta: Tensor,
        targets_M: Tensor,
        weights_M: Tensor,
    ) -> Tensor:
        rows_M, dtype, device = token_scale.reshape(-1), handle.dtype, handle.device
        num_rows, vocabulary = len(values_MK), len(ternary_VK)
        is_trained = ctx.needs_input_grad[0] or ctx.needs_input_grad[3]
        chunk = min(max(_CHUNK // vocabulary, 1), num_rows)
        columns, wide = beta.expand(vocabulary).contiguous(), torch.empty(0, device=device)
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
            _cross_entropy_kernel[(len(codes),)](
                *(logits, targets_M[part], weights_M[part], nats[part], dlogits if is_trained else logits, vocabulary),
                IS_TRAINED=is_trained,
                BLOCK=min(triton.next_power_of_2(vocabulary), 4096),
                num_warps=8,
            )
            if dtokens_MK is not None and dweight_VK is not None:
                torch.mm(dlogits[: len(codes)], matrix_VK, out=dtokens_MK[part])
                dweight_VK += dlogits[: len(codes)].t() @ scale_rows(codes, rows, dtype)
        ctx.save_for_backward(dtokens_MK, None if dweight_VK is None else dweight_VK.to(weight.dtype))
        return nats.sum()

    @staticmethod
    def backward(ctx: Any, dloss: Tensor) -> tuple[Tensor | None, ...]:
        # In place: a second backward pass over the same graph is refused by autograd's version check.
        dtokens_MK, dweight_VK = ctx.saved_tensors
        return dtokens_MK.mul_(dloss), None, None, dweight_VK.mul_(dloss), None, None, None, None
