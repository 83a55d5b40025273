"""Head product and cross-entropy in one on a CPU: logits are integer sums of a few rows at a time."""

# Shapes: M positions, K width, V vocabulary.

import functools
from typing import Any

import torch
from torch import Tensor

from rcdist.ops.int8_matmul import int8_matmul
from rcdist.ops.matmul import matmul, product_dtype
from rcdist.ops.native import call
from rcdist.ops.project import Trained, quantised_weight
from rcdist.ops.project_cpu import float_tokens
from rcdist.ops.quantise import Quantised

_CHUNK = 2**22
"""Logits that exist at a time: 16 MiB of sums and as much of gradient in float32."""

_SUMMED = 2**13
"""Terms of one float32 sum: MKL adds them one after the other, and 65,537 lost two digits more than these."""


def linear_cross_entropy_cpu(tokens: Quantised, head: Trained, targets_M: Tensor, weights_M: Tensor | None) -> Tensor:
    """Compute `ops.cross_entropy.linear_cross_entropy` on a CPU."""
    rounded = quantised_weight(head.weight_NK)
    weights_M = torch.ones(len(targets_M)) if weights_M is None else weights_M.float().contiguous()
    loss: Tensor = _LinearCrossEntropy.apply(
        *tokens, head.weight_NK, rounded.values, rounded.scale, targets_M.contiguous(), weights_M
    )
    return loss


def _matmul_in_parts(dlogits_MV: Tensor, matrix_VK: Tensor) -> Tensor:
    """Multiply, summing over _SUMMED entries of the vocabulary at a time."""
    if len(matrix_VK) <= _SUMMED:
        return matmul(dlogits_MV, matrix_VK)
    parts = zip(dlogits_MV.split(_SUMMED, 1), matrix_VK.split(_SUMMED), strict=True)
    return functools.reduce(torch.add, (matmul(dlogits, matrix) for dlogits, matrix in parts))


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
        rows_M, dtype = token_scale.reshape(-1), product_dtype(handle.dtype)
        num_rows, vocabulary = len(values_MK), len(ternary_VK)
        is_trained = ctx.needs_input_grad[0] or ctx.needs_input_grad[3]
        chunk = min(max(_CHUNK // vocabulary, 1), num_rows)
        sums = torch.empty(chunk, vocabulary, dtype=torch.int32)
        nats = torch.empty(num_rows, dtype=torch.float64)
        dlogits = dtokens_MK = dweight_VK = matrix_VK = None
        if is_trained:
            dlogits = torch.empty(chunk, vocabulary, dtype=dtype)
            dtokens_MK = torch.empty(values_MK.shape, dtype=handle.dtype)
            dweight_VK = torch.zeros(ternary_VK.shape)
            matrix_VK = float_tokens(ternary_VK, beta.expand(vocabulary).contiguous(), dtype)
        for first in range(0, num_rows, chunk):
            part = slice(first, min(first + chunk, num_rows))
            codes, count = values_MK[part], part.stop - first
            int8_matmul(codes, ternary_VK, out=sums[:count])
            call(
                "cross_entropy",
                handle if dlogits is None else dlogits,
                *(sums[:count], rows_M[part], float(beta), targets_M[part], weights_M[part], nats[part]),
                dlogits if dlogits is None else dlogits[:count],
                *(count, vocabulary),
            )
            if is_trained:
                assert dlogits is not None and dtokens_MK is not None
                assert dweight_VK is not None and matrix_VK is not None
                dtokens_MK[part] = _matmul_in_parts(dlogits[:count], matrix_VK)
                dweight_VK += matmul(dlogits[:count].t(), float_tokens(codes, rows_M[part], dtype))
        ctx.save_for_backward(dtokens_MK, None if dweight_VK is None else dweight_VK.to(weight.dtype))
        return nats.sum().float()

    @staticmethod
    def backward(ctx: Any, dloss: Tensor) -> tuple[Tensor | None, ...]:
        # In place: a second backward pass over the same graph is refused by autograd's version check.
        dtokens_MK, dweight_VK = ctx.saved_tensors
        return dtokens_MK.mul_(dloss), None, None, dweight_VK.mul_(dloss), None, None, None, None
