"""Summed cross-entropy: with the head's product in one, or of logits that turn into their own gradient."""

# Shapes: M positions, V vocabulary.

from typing import Any

import torch
from torch import Tensor

from rcdist.ops.autograd import apply
from rcdist.ops.backend import twin_of
from rcdist.ops.project import Trained, project
from rcdist.ops.quantise import Quantised
from rcdist.ops.weights import quantised_weight

_CPU_CHUNK = 2**19
_DEVICE_CHUNK = 2**27


def linear_cross_entropy(
    tokens: Quantised, head: Trained, targets_M: Tensor, weights_M: Tensor | None = None
) -> Tensor:
    """Multiply tokens by the head and sum weight * nats over positions.

    Args:
        tokens: (M, K) from one of the quantising operations.
        head: (V, K).
        targets_M: int64 in [0, V).
        weights_M: weight of each position; no gradient is taken. None: 1.

    Returns:
        A float32 scalar (float64 for float64 tokens).

    Cost: 6 M V K FLOPs. Fused, logits exist for a few rows at a time only, and the gradients of tokens and head are
    computed at once with the loss, so that the forward pass costs all of it; the reference keeps all logits.
    """
    twin = None if tokens.scale is None else twin_of("cross_entropy", tokens.handle)
    if twin is None:
        return summed_cross_entropy(project(tokens, [head])[0], targets_M, weights_M)
    rounded = quantised_weight(head.weight_NK)
    weights_M = torch.ones_like(targets_M, dtype=torch.float32) if weights_M is None else weights_M.float().contiguous()
    is_trained = torch.is_grad_enabled() and (tokens.handle.requires_grad or head.weight_NK.requires_grad)
    fixed = (tokens.values, tokens.scale, rounded.values, rounded.scale, targets_M.contiguous(), weights_M)
    loss: Tensor = apply(_LinearCrossEntropy, twin, is_trained, tokens.handle, head.weight_NK, *fixed)
    return loss


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        twin: Any,
        is_trained: bool,
        handle: Tensor,
        weight: Tensor,
        values_MK: Tensor,
        token_scale: Tensor,
        *fixed: Tensor,
    ) -> Tensor:
        loss: Tensor
        rows_M = token_scale.reshape(-1)
        loss, dtokens_MK, dweight_VK = twin.forward(handle.dtype, values_MK, rows_M, *fixed, is_trained=is_trained)
        ctx.save_for_backward(dtokens_MK, None if dweight_VK is None else dweight_VK.to(weight.dtype))
        return loss

    @staticmethod
    def backward(ctx: Any, dloss: Tensor) -> tuple[Tensor | None, ...]:
        # In place: a second backward pass over the same graph is refused by autograd's version check.
        dtokens_MK, dweight_VK = ctx.saved_tensors
        return None, None, dtokens_MK.mul_(dloss), dweight_VK.mul_(dloss), *[None] * 6


def summed_cross_entropy(logits_MV: Tensor, targets_M: Tensor, weights_M: Tensor | None = None) -> Tensor:
    """Sum weight * nats over positions, where nats = log sum exp(logits) - logits[target].

    The logits are consumed: where they need a gradient their memory holds it afterwards, so that neither a float32
    copy, nor the log-probabilities, nor a gradient of that size is allocated.

    Args:
        logits_MV: any float dtype, contiguous, used by nothing else.
        targets_M: int64 in [0, V).
        weights_M: weight of each position; no gradient is taken. None: 1.

    Returns:
        A float32 scalar (float64 for float64 logits).

    Cost: about 6 FLOPs per logit. Temporary memory: one chunk of 2^19 logits on a CPU, 2^27 elsewhere.
    """
    loss: Tensor = _SummedCrossEntropy.apply(logits_MV, targets_M, weights_M)
    return loss


class _SummedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits_MV: Tensor, targets_M: Tensor, weights_M: Tensor | None) -> Tensor:
        wide = torch.float64 if logits_MV.dtype == torch.float64 else torch.float32
        weights_M = torch.ones_like(targets_M, dtype=wide) if weights_M is None else weights_M.to(wide)
        rows = max((_CPU_CHUNK if logits_MV.device.type == "cpu" else _DEVICE_CHUNK) // logits_MV.shape[1], 1)
        loss = torch.zeros((), dtype=wide, device=logits_MV.device)
        chunks = zip(logits_MV.split(rows), targets_M.split(rows), weights_M.split(rows), strict=True)
        for logits, targets, weights in chunks:
            largest = logits.amax(-1, keepdim=True).to(wide)
            picked = logits.gather(-1, targets.unsqueeze(-1)).to(wide)
            in_place = ctx.needs_input_grad[0] and logits.dtype == wide
            shifted = logits.sub_(largest) if in_place else logits.to(wide) - largest
            sums = shifted.exp_().sum(-1, keepdim=True)
            loss += torch.dot((sums.log() + largest - picked).squeeze(-1), weights)
            if ctx.needs_input_grad[0]:
                weights = weights.unsqueeze(-1)
                shifted.mul_(weights / sums).scatter_add_(-1, targets.unsqueeze(-1), -weights)
                if not in_place:
                    logits.copy_(shifted)
        ctx.save_for_backward(logits_MV.detach())
        return loss

    @staticmethod
    def backward(ctx: Any, dloss: Tensor) -> tuple[Tensor, None, None]:
        (gradient_MV,) = ctx.saved_tensors
        # In place: a second backward pass over the same graph is refused by autograd's version check.
        return gradient_MV.mul_(dloss), None, None
