"""The ternary product: int8 tokens times a ternary matrix, with straight-through gradients."""

# Shapes: K input width, N output width, M tokens (all leading dimensions flattened).

from typing import Any

import torch
from torch import Tensor

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
    y: Tensor = _TernaryProduct.apply(*tokens, *weight, None)
    return y


def frozen_product(tokens: Quantised, ternary_NK: Tensor, scale: float, gain_N: Tensor | None = None) -> Tensor:
    """Multiply quantised tokens by a frozen ternary matrix: no weight gradient, no quantisation of the matrix.

    y = (q_x * s_x) (ternary * scale)^T * gain

    Args:
        tokens: (..., K) from `quantise_tokens`.
        ternary_NK: int8, -1, 0 or 1.
        scale: multiplies the matrix.
        gain_N: trained gain of each output channel. None: 1.

    Cost: 2 M N K FLOPs forward, 2 M N K backward. Saved for backward: int8 codes and scales; with a gain, the product.
    """
    y: Tensor = _TernaryProduct.apply(*tokens, None, ternary_NK, scale, gain_N)
    return y


def _int8_is_fast(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype == torch.int8 and a.device.type == "cpu" and torch.backends.mkldnn.is_available()


class _TernaryProduct(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        handle: Tensor,
        values: Tensor,
        token_scale: Tensor | None,
        weight: Tensor | None,
        weight_values_NK: Tensor,
        weight_scale: Tensor | float | None,
        gain_N: Tensor | None,
    ) -> Tensor:
        ctx.weight_scale, ctx.dtype = weight_scale, handle.dtype
        values_MK = values.reshape(-1, values.shape[-1])
        if _int8_is_fast(values, weight_values_NK):
            sums_MN = torch._int_mm(values_MK, weight_values_NK.t())
            # Converted where they stand: a second buffer costs more than the conversion, above all for logits.
            y_MN = sums_MN.view(torch.float32).copy_(sums_MN)
        else:
            # Codes up to 127 are exact in bfloat16 too, and their products are summed in float32.
            y_MN = matmul(values_MK.to(handle.dtype), weight_values_NK.to(handle.dtype).t())
        scale: Any = weight_scale
        if token_scale is not None:
            rows_M1 = token_scale.reshape(-1, 1)
            scale = rows_M1 if scale is None else rows_M1 * scale
        if scale is not None:
            y_MN = y_MN.mul_(scale) if y_MN.dtype == torch.float32 else y_MN * scale
        y_MN = y_MN.to(handle.dtype)
        ctx.save_for_backward(values, token_scale, weight_values_NK, gain_N, None if gain_N is None else y_MN)
        if gain_N is not None:
            y_MN = y_MN * gain_N
        return y_MN.view(*values.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        values, token_scale, weight_values_NK, gain_N, y_MN = ctx.saved_tensors
        dy_MN = dy.reshape(-1, dy.shape[-1])
        dhandle = dweight_NK = dgain_N = None
        if ctx.needs_input_grad[0]:
            matrix_NK = _times(weight_values_NK.to(ctx.dtype), ctx.weight_scale)
            if gain_N is not None:
                matrix_NK = matrix_NK * gain_N.unsqueeze(-1)
            dhandle = matmul(dy_MN, matrix_NK).view(values.shape)
        if ctx.needs_input_grad[3]:
            # Transposed while it is int8, and the smaller operand of the two: cheaper than transposing dy.
            values_KM = values.reshape(-1, values.shape[-1]).t().contiguous().to(ctx.dtype)
            row_1M = None if token_scale is None else token_scale.reshape(1, -1)
            dweight_NK = matmul(_times(values_KM, row_1M), dy_MN).t().contiguous()
        if gain_N is not None and ctx.needs_input_grad[6]:
            dgain_N = (dy_MN * y_MN).sum(0, dtype=torch.promote_types(torch.float32, ctx.dtype)).to(gain_N.dtype)
        return dhandle, None, None, dweight_NK, None, None, dgain_N


def _times(x: Tensor, scale: Tensor | float | None) -> Tensor:
    return x if scale is None else (x * scale).to(x.dtype)
