"""Several ternary products of one input on a GPU: int8 forward with scales in the kernel, bfloat16 backward."""

# Shapes: M tokens, K input width, N output width, V vocabulary.

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from rcdist.ops.product_triton import (
    dense_product,
    hadamard_contract,
    hadamard_expand,
    hadamard_is_fused,
    scale_rows,
)
from rcdist.ops.project import Frozen, Projection, Trained, quantised_weight
from rcdist.ops.quantise import Quantised
from rcdist.ops.topology import Dense, Hadamard, LinearMap


def project_triton(tokens: Quantised, projections: Sequence[Projection]) -> list[Tensor]:
    """Compute `ops.project.project` with Triton."""
    tensors: list[Tensor | None] = []
    fixed: list[tuple[Tensor, Tensor] | tuple[LinearMap, float]] = []
    for projection in projections:
        if isinstance(projection, Trained):
            rounded = quantised_weight(projection.weight_NK)
            assert rounded.scale is not None
            tensors.append(projection.weight_NK)
            fixed.append((rounded.values, rounded.scale))
        else:
            tensors.append(projection.gain_N)
            fixed.append((projection.matrix, projection.scale))
    kinds = tuple(isinstance(projection, Frozen) for projection in projections)
    return list(_Project.apply(tokens.handle, tokens.values, tokens.scale, kinds, fixed, *tensors))


class _Project(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        handle: Tensor,
        values: Tensor,
        token_scale: Tensor,
        is_frozen: tuple[bool, ...],
        fixed: list[Any],
        *tensors: Tensor | None,
    ) -> tuple[Tensor, ...]:
        codes, rows = values.reshape(-1, values.shape[-1]), token_scale.reshape(-1)
        outputs = []
        for frozen, item, tensor in zip(is_frozen, fixed, tensors, strict=True):
            if frozen:
                outputs.append(
                    _frozen_forward(handle, codes, rows, item[0], _columns(item[0], item[1], tensor, codes.device))
                )
            else:
                ternary, beta = item
                outputs.append(dense_product(handle, codes, rows, ternary, beta.expand(len(ternary)).contiguous()))
        ctx.is_frozen, ctx.fixed, ctx.shape = is_frozen, fixed, values.shape
        kept = [y if f and t is not None else None for f, t, y in zip(is_frozen, tensors, outputs, strict=True)]
        gains = [tensor if frozen else None for frozen, tensor in zip(is_frozen, tensors, strict=True)]
        ctx.save_for_backward(codes, rows, *kept, *gains)
        return tuple(y.view(*values.shape[:-1], -1) for y in outputs)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        codes, rows, *saved = ctx.saved_tensors
        count = len(ctx.is_frozen)
        kept, gains = saved[:count], saved[count:]
        results: list[Tensor | None] = []
        dtokens: Tensor | None = None
        tokens_MK: Tensor | None = None
        for i, (frozen, item, dy) in enumerate(zip(ctx.is_frozen, ctx.fixed, gradients, strict=True)):
            dy_MN = dy.reshape(-1, dy.shape[-1])
            if ctx.needs_input_grad[0]:
                if frozen:
                    dtokens = _frozen_backward(
                        dy_MN, item[0], _columns(item[0], item[1], gains[i], codes.device), dtokens
                    )
                else:
                    ternary, beta = item
                    dtokens = _add_product(dy_MN, scale_rows(ternary, beta.expand(len(ternary)), dy.dtype), dtokens)
            if not ctx.needs_input_grad[5 + i]:
                results.append(None)
            elif frozen:
                results.append(_gain_gradient(dy_MN, kept[i], gains[i]))
            else:
                tokens_MK = scale_rows(codes, rows, dy.dtype) if tokens_MK is None else tokens_MK
                results.append(dy_MN.t() @ tokens_MK)
        return None if dtokens is None else dtokens.view(ctx.shape), None, None, None, None, *results


def _add_product(dy_MN: Tensor, matrix_NK: Tensor, total_MK: Tensor | None) -> Tensor:
    return dy_MN @ matrix_NK if total_MK is None else torch.addmm(total_MK, dy_MN, matrix_NK, out=total_MK)


def _columns(matrix: LinearMap, scale: float, gain_N: Tensor | None, device: torch.device) -> Tensor:
    """Return what multiplies each output channel, float32."""
    return torch.full((matrix.shape[0],), scale, device=device) if gain_N is None else gain_N.float() * scale


def _frozen_forward(like: Tensor, codes: Tensor, rows: Tensor, matrix: LinearMap, columns: Tensor) -> Tensor:
    if isinstance(matrix, Dense):
        return dense_product(like, codes, rows, matrix.ternary_NK, columns)
    if isinstance(matrix, Hadamard) and hadamard_is_fused(matrix):
        if matrix.shape[0] >= matrix.shape[1]:
            return hadamard_expand(codes, rows, columns, matrix, like.dtype)
        return (hadamard_contract(codes, rows, None, matrix, like.dtype) * columns).to(like.dtype)
    return (matrix.times(scale_rows(codes, rows, like.dtype)) * columns).to(like.dtype)


def _frozen_backward(dy: Tensor, matrix: LinearMap, columns: Tensor, total: Tensor | None) -> Tensor:
    if isinstance(matrix, Dense):
        return _add_product(dy, scale_rows(matrix.ternary_NK, columns, dy.dtype), total)
    if isinstance(matrix, Hadamard) and hadamard_is_fused(matrix):
        if matrix.shape[0] >= matrix.shape[1]:
            product = hadamard_contract(dy.contiguous(), None, columns, matrix, dy.dtype)
        else:
            product = hadamard_expand((dy * columns).to(dy.dtype), None, None, matrix, dy.dtype)
    else:
        product = matrix.times_transposed((dy * columns).to(dy.dtype))
    return product if total is None else total.add_(product)


def _gain_gradient(dy_MN: Tensor, y_MN: Tensor, gain_N: Tensor) -> Tensor:
    """Return the sum over tokens of dy * y / gain; a gain that is exactly 0 gets a gradient of 0.

    To know whether one is would mean to look at the values, for which the device would have to stop.
    """
    wide = gain_N.float()
    ungained = torch.where(wide == 0, torch.ones_like(wide), wide)
    return ((dy_MN * y_MN).sum(0, dtype=torch.float32) / ungained).to(gain_N.dtype)
