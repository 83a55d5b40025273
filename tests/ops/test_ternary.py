"""The ternary product: hand numbers, the straight-through rule, and what is kept for the backward pass."""

import pytest
import torch
from torch import Tensor

from rcdist.ops.quantise import Quantised, quantise_tokens, quantise_weight
from rcdist.ops.ternary import ternary_product


def reference(tokens: Quantised, weight: Quantised) -> Tensor:
    """Multiply the dequantised tensors, with x + (Q(x) - x).detach() as the straight-through rule."""

    def dequantise(q: Quantised) -> Tensor:
        values = q.values if q.scale is None else q.values.to(q.handle.dtype) * q.scale
        return q.handle + (values - q.handle).detach()

    return dequantise(tokens) @ dequantise(weight).t()


def test_straight_through_by_hand() -> None:
    x = torch.tensor([[2.0, -1.0]], requires_grad=True)
    weight = torch.tensor([[1.0, 0.1], [-0.5, 0.4]], requires_grad=True)
    tokens, matrix = quantise_tokens(x), quantise_weight(weight)
    assert tokens.values.tolist() == [[127, -64]]
    assert matrix.values.tolist() == [[1, 0], [-1, 1]]  # beta 0.5
    y = ternary_product(tokens, matrix)
    q = 2 / 127 * 64
    torch.testing.assert_close(y, 0.5 * torch.tensor([[2.0, -2.0 - q]]))
    y.backward(torch.tensor([[1.0, 10.0]]))
    # dx = dy Q(W); dW = dy^T Q(x): nothing is masked, nothing of the quantisers is differentiated.
    torch.testing.assert_close(x.grad, torch.tensor([[0.5 - 5.0, 5.0]]))
    torch.testing.assert_close(weight.grad, torch.tensor([[2.0, -q], [20.0, -10 * q]]))


@pytest.mark.parametrize("rounding", ["nearest", "identity"])
@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (2, 5, 33, 7), (1, 63, 8, 65), (3, 20, 64, 32)])
def test_equals_reference(shape: tuple[int, int, int, int], rounding: str) -> None:
    batch, time, inputs, outputs = shape
    x = torch.randn(batch, time, inputs, requires_grad=True)
    weight = torch.randn(outputs, inputs, requires_grad=True)
    dy = torch.randn(batch, time, outputs)
    results = []
    for product in (ternary_product, reference):
        y = product(quantise_tokens(x, rounding), quantise_weight(weight, rounding))
        results.append((y, *torch.autograd.grad(y, (x, weight), dy)))
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-4)


def test_bfloat16_rounds_only_the_result() -> None:
    x, weight = torch.randn(40, 64).bfloat16(), torch.randn(24, 64).bfloat16()
    low = ternary_product(quantise_tokens(x), quantise_weight(weight))
    high = ternary_product(quantise_tokens(x.float()), quantise_weight(weight.float()))
    assert low.dtype == torch.bfloat16
    assert torch.equal(low, high.bfloat16())


def test_int8_is_what_is_saved_for_backward() -> None:
    x = torch.randn(10, 32, requires_grad=True)
    weight = torch.randn(16, 32, requires_grad=True)
    saved: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        ternary_product(quantise_tokens(x), quantise_weight(weight))
    assert {(tuple(t.shape), t.dtype) for t in saved} == {
        ((10, 32), torch.int8),
        ((10, 1), torch.float32),
        ((16, 32), torch.int8),
        ((), torch.float32),
    }
