"""The frozen product: int8 tokens times a frozen matrix of any topology, with no gradient for the matrix."""

# Shapes: K input width, N output width, M tokens (all leading dimensions flattened).

from typing import Any

import torch
from torch import Tensor

from rcdist.ops.int8_matmul import is_int8_on_cpu
from rcdist.ops.quantise import Quantised
from rcdist.ops.topology import DenseMap, LinearMap


def frozen_product(tokens: Quantised, matrix: LinearMap, scale: float, gain_N: Tensor | None = None) -> Tensor:
    """Multiply quantised tokens by a frozen matrix: no weight gradient, no quantisation of the matrix.

    y = (q_x * s_x) (A * scale)^T * gain; the gradient passes straight through the quantiser of the tokens.

    Args:
        tokens: (..., K) from `quantise_tokens`.
        matrix: from a topology's `linear_map`.
        scale: multiplies the matrix.
        gain_N: trained gain of each output channel. None: 1.

    Returns:
        (..., N) in the dtype of the tokens' handle.

    Cost: forward and backward one product by the matrix each. Saved for backward: with a gain, the product.
    """
    y: Tensor = _FrozenProduct.apply(tokens.handle, tokens.values, tokens.scale, gain_N, matrix, scale)
    return y


class _FrozenProduct(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        handle: Tensor,
        values: Tensor,
        token_scale: Tensor | None,
        gain_N: Tensor | None,
        matrix: LinearMap,
        scale: float,
    ) -> Tensor:
        ctx.matrix, ctx.scale = matrix, scale
        values_MK = values.reshape(-1, values.shape[-1])
        if isinstance(matrix, DenseMap) and is_int8_on_cpu(values, matrix.ternary_NK):
            y_MN = matrix.times(values_MK)
        else:
            # Codes up to 127 are exact in bfloat16 too.
            y_MN = matrix.times(values_MK.to(handle.dtype))
        rows: Any = scale if token_scale is None else token_scale.reshape(-1, 1) * scale
        y_MN = (y_MN * rows).to(handle.dtype)
        ctx.save_for_backward(gain_N, None if gain_N is None else y_MN)
        if gain_N is not None:
            y_MN = y_MN * gain_N
        return y_MN.view(*values.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        gain_N, y_MN = ctx.saved_tensors
        dy_MN = dy.reshape(-1, dy.shape[-1])
        dhandle = dgain_N = None
        if ctx.needs_input_grad[0]:
            scaled_MN = dy_MN * ctx.scale if gain_N is None else dy_MN * (gain_N * ctx.scale)
            dhandle = ctx.matrix.times_transposed(scaled_MN).view(*dy.shape[:-1], -1)
        if gain_N is not None and ctx.needs_input_grad[3]:
            dgain_N = (dy_MN * y_MN).sum(0, dtype=torch.promote_types(torch.float32, dy.dtype)).to(gain_N.dtype)
        return dhandle, None, None, dgain_N, None, None
