"""Several ternary products of one input on a CPU: int8 forward, scaled in the cache; float backward."""

# Shapes: M tokens, K input width, N output width.

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from rcdist.ops.autograd import apply
from rcdist.ops.int8_matmul import scaled_int8_matmul
from rcdist.ops.matmul import matmul, product_dtype
from rcdist.ops.native import call
from rcdist.ops.project import Frozen, Projection, Trained, quantised_weight
from rcdist.ops.quantise import Quantised
from rcdist.ops.topology import Block, Dense, Hadamard, LinearMap


def project_cpu(tokens: Quantised, projections: Sequence[Projection]) -> list[Tensor]:
    """Compute `ops.project.project` on a CPU."""
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
    return list(apply(_Project, tokens.handle, tokens.values, tokens.scale, kinds, fixed, *tensors))


def quantise_weight_cpu(weight_NK: Tensor) -> Quantised:
    """Compute `ops.quantise.quantise_weight` on a CPU."""
    weight = weight_NK.detach().contiguous()
    codes, beta = torch.empty(weight.shape, dtype=torch.int8), torch.empty(())
    call("quantise_weight", weight, weight, codes, None, beta, weight.numel())
    return Quantised(weight_NK, codes, beta)


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
                matrix, scale = item
                outputs.append(_frozen_forward(handle, codes, rows, matrix, _columns(matrix, scale, tensor)))
            else:
                ternary, beta = item
                outputs.append(scaled_int8_matmul(handle, codes, rows, ternary, beta.expand(len(ternary)).contiguous()))
        ctx.is_frozen, ctx.fixed, ctx.dtype = is_frozen, fixed, handle.dtype
        kept = [y if f and t is not None else None for f, t, y in zip(is_frozen, tensors, outputs, strict=True)]
        gains = [tensor if frozen else None for frozen, tensor in zip(is_frozen, tensors, strict=True)]
        ctx.save_for_backward(codes, rows, *kept, *gains)
        ctx.shape = values.shape
        return tuple(y.view(*values.shape[:-1], -1) for y in outputs)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        codes, rows, *saved = ctx.saved_tensors
        count = len(ctx.is_frozen)
        kept, gains = saved[:count], saved[count:]
        results: list[Tensor | None] = []
        dtokens: Tensor | None = None
        tokens_MK: Tensor | None = None
        wide = product_dtype(ctx.dtype)
        for i, (frozen, item, dy) in enumerate(zip(ctx.is_frozen, ctx.fixed, gradients, strict=True)):
            dy_MN = dy.reshape(-1, dy.shape[-1]).to(wide)
            needs_tensor = ctx.needs_input_grad[5 + i]
            if ctx.needs_input_grad[0]:
                if frozen:
                    matrix, scale = item
                    dtokens = _frozen_backward(dy_MN, matrix, _columns(matrix, scale, gains[i]), dtokens)
                else:
                    ternary, beta = item
                    dtokens = dense_backward(dy_MN, ternary, beta.expand(len(ternary)).contiguous(), dtokens)
            if frozen:
                results.append(_gain_gradient(dy_MN, kept[i], gains[i], codes, rows, item) if needs_tensor else None)
            elif needs_tensor:
                if tokens_MK is None:
                    tokens_MK = float_tokens(codes, rows, wide)
                results.append(matmul(dy_MN.t(), tokens_MK).to(ctx.dtype))
            else:
                results.append(None)
        return None if dtokens is None else dtokens.to(ctx.dtype).view(ctx.shape), None, None, None, None, *results


def float_tokens(codes_MK: Tensor, rows_M: Tensor, dtype: torch.dtype) -> Tensor:
    """Return codes * scale as (M, K) of a float dtype."""
    out = torch.empty(codes_MK.shape, dtype=dtype)
    call("scale_rows", out, codes_MK, rows_M, out, *codes_MK.shape)
    return out


def dense_backward(dy_MN: Tensor, ternary_NK: Tensor, columns_N: Tensor, total_MK: Tensor | None) -> Tensor:
    """Return total + dy (ternary * columns), (M, K)."""
    matrix_NK = torch.empty(ternary_NK.shape, dtype=dy_MN.dtype)
    call("scale_rows", matrix_NK, ternary_NK, columns_N, matrix_NK, *ternary_NK.shape)
    product_MK = matmul(dy_MN, matrix_NK)
    return product_MK if total_MK is None else total_MK.add_(product_MK)


def _columns(matrix: LinearMap, scale: float, gain_N: Tensor | None) -> Tensor:
    """Return what multiplies each output channel, float32."""
    if gain_N is None:
        return torch.full((matrix.shape[0],), scale)
    return gain_N.float() * scale


def _frozen_forward(like: Tensor, codes: Tensor, rows: Tensor, matrix: LinearMap, columns: Tensor) -> Tensor:
    if isinstance(matrix, Dense):
        return scaled_int8_matmul(like, codes, rows, matrix.ternary_NK, columns)
    if isinstance(matrix, Hadamard):
        out = torch.empty(len(codes), matrix.shape[0], dtype=like.dtype)
        return _hadamard(codes, rows, None, columns, matrix, out, is_transposed=False, add=False)
    if isinstance(matrix, Block):
        out = torch.empty(len(codes), matrix.shape[0], dtype=like.dtype)
        return _block(codes, rows, columns, matrix, out, is_transposed=False, add=False)
    return matrix.times(float_tokens(codes, rows, like.dtype)) * columns.to(like.dtype)


def _frozen_backward(dy: Tensor, matrix: LinearMap, columns: Tensor, total: Tensor | None) -> Tensor:
    if isinstance(matrix, Dense):
        return dense_backward(dy, matrix.ternary_NK, columns, total)
    if isinstance(matrix, Hadamard):
        out = torch.empty(len(dy), matrix.shape[1], dtype=dy.dtype) if total is None else total
        dy = dy.contiguous()
        return _hadamard(dy, None, columns, None, matrix, out, is_transposed=True, add=total is not None)
    if isinstance(matrix, Block):
        out = torch.empty(len(dy), matrix.shape[1], dtype=dy.dtype) if total is None else total
        return _block(dy.contiguous(), None, columns, matrix, out, is_transposed=True, add=total is not None)
    product = matrix.times_transposed((dy * columns).to(dy.dtype))
    return product if total is None else total.add_(product)


def _hadamard(
    x: Tensor,
    rows: Tensor | None,
    columns_in: Tensor | None,
    columns_out: Tensor | None,
    matrix: Hadamard,
    out: Tensor,
    *,
    is_transposed: bool,
    add: bool,
) -> Tensor:
    outputs, inputs = matrix.shape
    # A contraction is the transpose of an expansion, so multiplying by it contracts.
    contracts = is_transposed == (outputs >= inputs)
    if not contracts and columns_in is not None:
        x, columns_in = (x * columns_in).to(x.dtype), None
    index = matrix.inverse_SW if contracts else matrix.permutation_SW
    width = matrix.signs_S2W.shape[2]
    arguments = (x.dtype == torch.int8, contracts, x, x.shape[1], rows, columns_in, columns_out, matrix.signs_S2W)
    call(
        "hadamard",
        out,
        *(*arguments, index, out, out.shape[1], len(x), width, max(outputs, inputs), matrix.size, add),
    )
    return out


def _block(
    x: Tensor, rows: Tensor | None, columns: Tensor, matrix: Block, out: Tensor, *, is_transposed: bool, add: bool
) -> Tensor:
    blocks, outputs, inputs = matrix.ternary_BRC.shape
    table = matrix.ternary_BRC.float()
    arguments: tuple[Tensor | None, ...]
    if is_transposed:
        arguments = (columns, None, matrix.inverse_N, None, table, out)
        sizes = (outputs, inputs)
    else:
        arguments = (None, columns, None, matrix.permutation_N, table.transpose(1, 2).contiguous(), out)
        sizes = (inputs, outputs)
    call("block", out, x.dtype == torch.int8, x, rows, *arguments, len(x), blocks, *sizes, add)
    return out


def _gain_gradient(
    dy_MN: Tensor, y_MN: Tensor, gain_N: Tensor, codes: Tensor, rows: Tensor, item: tuple[LinearMap, float]
) -> Tensor:
    """Return the sum over tokens of dy * y / gain; where a gain is 0, of dy times the product without it."""
    width = dy_MN.shape[1]
    sums = torch.zeros(torch.get_num_threads(), width)
    dy_MN, y_MN = dy_MN.contiguous(), y_MN.to(dy_MN.dtype).contiguous()
    call("dot_columns", dy_MN, dy_MN, width, y_MN, width, sums, len(dy_MN), width)
    wide = gain_N.float()
    if bool((wide == 0).any()):
        matrix, scale = item
        ungained = _frozen_forward(dy_MN, codes, rows, matrix, torch.full((width,), scale))
        return (dy_MN.float() * ungained.float()).sum(0).to(gain_N.dtype)
    return (sums.sum(0) / wide).to(gain_N.dtype)
