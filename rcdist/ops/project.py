"""Several ternary products of one input, trained or frozen: what is common to them is done once."""

# Shapes: M tokens, K input width, N output width.

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rcdist.ops import project_reference
from rcdist.ops.autograd import apply, constant, hollow
from rcdist.ops.backend import twin_of
from rcdist.ops.matmul import matmul
from rcdist.ops.quantise import Quantised, Rounding
from rcdist.ops.topology import DenseMap, LinearMap
from rcdist.ops.weights import columns_of, quantised_weight, scaled_weight


@dataclass(frozen=True)
class Trained:
    """Name a trained matrix.

    Attributes:
        weight_NK: latent weights, rounded to ternary.
        rounding: identity leaves them as they are.
    """

    weight_NK: Tensor
    rounding: Rounding = "nearest"


@dataclass(frozen=True)
class Frozen:
    """Name a frozen matrix.

    Attributes:
        matrix: what multiplies by it, unscaled.
        scale: multiplies it.
        gain_N: trained gain of each output channel. None: 1.
    """

    matrix: LinearMap
    scale: float
    gain_N: Tensor | None = None


@dataclass(frozen=True)
class Unmultiplied:
    """Name no matrix: the result stands for the tokens, and what comes back as its gradient is added to theirs.

    For an operation that reads codes and scale itself (see `ops.gated.Repeated`): its gradient is added where those
    of the products are, without a pass of its own.
    """


Projection = Trained | Frozen | Unmultiplied


def project(tokens: Quantised, projections: Sequence[Projection]) -> list[Tensor]:
    """Multiply quantised tokens by several matrices.

    Args:
        tokens: (..., K) from one of the quantising operations.
        projections: matrices (N_i, K).

    Returns:
        One (..., N_i) per matrix, in the dtype of the tokens' handle; a handle of the tokens for `Unmultiplied`.

    y = (q_x * s_x) (q_w * s_w)^T, or of a frozen matrix (q_x * s_x) (A * scale)^T * gain. Gradients pass straight
    through the quantisers: dx = dy Q(W), dW = dy^T Q(x); a frozen matrix has none.

    Cost: per matrix 2 M N K FLOPs forward, and backward 4 M N K trained or 2 M N K frozen (structured ones: see
    `ops.topology`). Fused, the input's gradient is summed in place and the tokens are made float once for all weight
    gradients; saved for backward: the int8 codes, and the outputs of frozen matrices with a gain.
    Zhu et al. 2024, arXiv:2406.02528, section 3.1; straight-through: Bengio et al. 2013, arXiv:1308.3432.
    """
    twin = (None if tokens.scale is None else twin_of("project", tokens.handle)) or project_reference
    matrices = [_operand(projection) for projection in projections]
    tensors = [_trained_tensor(projection) for projection in projections]
    return list(apply(_Project, twin, matrices, tokens.handle, tokens.values, tokens.scale, *tensors))


class _Operand(NamedTuple):
    """Hold a matrix as the twins multiply by it: a map, and a scale for each of its outputs."""

    matrix: LinearMap
    scale: Tensor | float | None
    is_frozen: bool

    def columns(self, gain_N: Tensor | None, like: Tensor) -> Tensor | None:
        """Return what multiplies each output channel, float32 or wider, maybe one number expanded; None: 1."""
        if not isinstance(self.scale, float):
            return None if self.scale is None else self.scale.expand(self.matrix.shape[0])
        if gain_N is None:
            wide = torch.promote_types(like.dtype, torch.float32)
            return constant(self.scale, wide, like.device).expand(self.matrix.shape[0])
        return columns_of(gain_N, self.scale)


def _trained_tensor(projection: Projection) -> Tensor | None:
    if isinstance(projection, Trained):
        return projection.weight_NK
    return projection.gain_N if isinstance(projection, Frozen) else None


def _operand(projection: Projection) -> _Operand | None:
    if isinstance(projection, Unmultiplied):
        return None
    if isinstance(projection, Frozen):
        return _Operand(projection.matrix, float(projection.scale), is_frozen=True)
    rounded = quantised_weight(projection.weight_NK, projection.rounding)
    parts = {"ternary": rounded.values}
    scaled_NK = scaled_weight(rounded) if torch.is_grad_enabled() else None
    if scaled_NK is not None:
        parts["scaled"] = scaled_NK
    matrix = DenseMap(parts, (rounded.values.shape[0], rounded.values.shape[1]))
    return _Operand(matrix, rounded.scale, is_frozen=False)


class _Project(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        twin: Any,
        operands: list[_Operand | None],
        handle: Tensor,
        values: Tensor,
        token_scale: Tensor | None,
        *tensors: Tensor | None,
    ) -> tuple[Tensor, ...]:
        codes = values.reshape(-1, values.shape[-1])
        rows = None if token_scale is None else token_scale.reshape(-1)
        outputs: list[Tensor] = []
        kept: list[Tensor | None] = []
        gains: list[Tensor | None] = []
        factors: list[Tensor | None] = []
        multiplied = [operand for operand in operands if operand is not None]
        scales = [
            operand.columns(tensor if operand.is_frozen else None, handle)
            for operand, tensor in zip(operands, tensors, strict=True)
            if operand is not None
        ]
        products = iter(twin.products(handle, codes, rows, [operand.matrix for operand in multiplied], scales))
        columns_of_each = iter(scales)
        for operand, tensor in zip(operands, tensors, strict=True):
            if operand is None:
                outputs.append(hollow(handle))
                for saved in (kept, gains, factors):
                    saved.append(None)
                continue
            columns, y_MN = next(columns_of_each), next(products)
            gain = tensor if operand.is_frozen else None
            outputs.append(y_MN.view(*values.shape[:-1], y_MN.shape[-1]))
            gains.append(gain)
            factors.append(columns if operand.is_frozen else None)
            kept.append(None if gain is None else y_MN)
        ctx.twin, ctx.operands, ctx.dtype, ctx.shape = twin, operands, handle.dtype, values.shape
        ctx.save_for_backward(codes, rows, *kept, *gains, *factors)
        return tuple(outputs)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        codes, rows, *saved = ctx.saved_tensors
        kept, gains, factors = (saved[i * len(gradients) : (i + 1) * len(gradients)] for i in range(3))
        twin, wide = ctx.twin, ctx.twin.product_dtype(ctx.dtype)
        results: list[Tensor | None] = []
        # Others are added to it in place: nobody else has it.
        passed = [dy for operand, dy in zip(ctx.operands, gradients, strict=True) if operand is None]
        dtokens = passed[0].reshape(-1, passed[0].shape[-1]).to(wide) if passed else None
        tokens_MK: Tensor | None = None
        for i, (operand, dy) in enumerate(zip(ctx.operands, gradients, strict=True)):
            if operand is None:
                results.append(None)
                continue
            dy_MN = dy.reshape(-1, dy.shape[-1]).to(wide)
            if ctx.needs_input_grad[2]:
                columns = factors[i] if operand.is_frozen else operand.columns(None, dy_MN)
                dtokens = twin.backward(dy_MN, operand.matrix, columns, dtokens)
            if not ctx.needs_input_grad[5 + i]:
                results.append(None)
            elif operand.is_frozen:
                results.append(twin.gain_gradient(dy_MN, kept[i], gains[i], codes, rows, operand.matrix, operand.scale))
            else:
                tokens_MK = twin.scale_rows(codes, rows, wide) if tokens_MK is None else tokens_MK
                results.append(matmul(dy_MN.t(), tokens_MK).to(ctx.dtype))
        dhandle = None if dtokens is None else dtokens.to(ctx.dtype).view(ctx.shape)
        return None, None, dhandle, None, None, *results
