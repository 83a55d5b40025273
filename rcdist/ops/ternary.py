"""The ternary product: int8 tokens times a ternary matrix, with straight-through gradients."""

# Shapes: K input width, N output width, M tokens (all leading dimensions flattened).

from typing import Any

import torch
from torch import Tensor

from rcdist.ops.int8_matmul import float_int8_matmul, is_int8_on_cpu
from rcdist.ops.matmul import matmul
from rcdist.ops.quantise import Quantised


def ternary_product(tokens: Quantised, weight: Quantised) -> Tensor:
    """Multiply quantised tokens by a trained matrix that was quantised for this forward pass.

    y = (q_x * s_x) (q_w * s_w)^T

    Gradients pass straight through both quantisers: dx = dy Q(W), dW = dy^T Q(x), in the dtypes of the handles.

    Args:
        tokens: (..., K) from `quantise_tokens`.
        weight: (N, K) from `quantise_weight`.

    Returns:
        (..., N) in the dtype of the tokens' handle. Integer codes are summed exactly.

    Cost: 2 M N K FLOPs forward, 4 M N K backward. Saved for backward: the int8 codes and scales.
    Zhu et al. 2024, arXiv:2406.02528, section 3.1; straight-through: Bengio et al. 2013, arXiv:1308.3432.
    """
    y: Tensor = _TernaryProduct.apply(*tokens, *weight)
    return y


class _TernaryProduct(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        handle: Tensor,
        values: Tensor,
        token_scale: Tensor | None,
        weight: Tensor,
        weight_values_NK: Tensor,
        weight_scale: Tensor | None,
    ) -> Tensor:
        ctx.dtype = handle.dtype
        values_MK = values.reshape(-1, values.shape[-1])
        if is_int8_on_cpu(values, weight_values_NK):
            y_MN = float_int8_matmul(values_MK, weight_values_NK)
        else:
            # Codes up to 127 are exact in bfloat16 too, and their products are summed in float32.
            y_MN = matmul(values_MK.to(handle.dtype), weight_values_NK.to(handle.dtype).t())
        scale = weight_scale
        if token_scale is not None:
            rows_M1 = token_scale.reshape(-1, 1)
            scale = rows_M1 if scale is None else rows_M1 * scale
        if scale is not None:
            y_MN = y_MN.mul_(scale) if y_MN.dtype == torch.float32 else y_MN * scale
        ctx.save_for_backward(values, token_scale, weight_values_NK, weight_scale)
        return y_MN.to(handle.dtype).view(*values.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        values, token_scale, weight_values_NK, weight_scale = ctx.saved_tensors
        dy_MN = dy.reshape(-1, dy.shape[-1])
        dhandle = dweight_NK = None
        if ctx.needs_input_grad[0]:
            dhandle = matmul(dy_MN, _times(weight_values_NK.to(ctx.dtype), weight_scale)).view(values.shape)
        if ctx.needs_input_grad[3]:
            # Transposed while it is int8, and the smaller operand of the two: cheaper than transposing dy.
            values_KM = values.reshape(-1, values.shape[-1]).t().contiguous().to(ctx.dtype)
            row_1M = None if token_scale is None else token_scale.reshape(1, -1)
            dweight_NK = matmul(_times(values_KM, row_1M), dy_MN).t().contiguous()
        return dhandle, None, None, dweight_NK, None, None


def _times(x: Tensor, scale: Tensor | None) -> Tensor:
    return x if scale is None else (x * scale).to(x.dtype)
