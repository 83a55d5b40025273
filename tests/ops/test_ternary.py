"""The ternary product: hand numbers, the straight-through rule, and no weight gradient for a frozen matrix."""

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from rcdist.ops.quantise import Quantised, quantise_tokens, quantise_weight
from rcdist.ops.ternary import frozen_product, ternary_product


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


def test_codes_are_summed_exactly() -> None:
    values = torch.full((1, 4099), 127, dtype=torch.int8)
    ternary = torch.ones(3, 4099, dtype=torch.int8)
    y = frozen_product(Quantised(torch.zeros(1, 4099), values, None), ternary, 1.0)
    assert y.tolist() == [[127.0 * 4099] * 3]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_frozen_product_with_gain(dtype: torch.dtype) -> None:
    x = torch.randn(4, 6, 31).to(dtype).requires_grad_()
    gain = torch.randn(12).to(dtype).requires_grad_()
    ternary = torch.randint(-1, 2, (12, 31), dtype=torch.int8)
    tokens = quantise_tokens(x)
    matrix = ternary.to(dtype) * 0.25
    y = frozen_product(tokens, ternary, 0.25, gain)
    assert y.dtype == dtype
    exact = reference(
        Quantised(x.float(), tokens.values, tokens.scale), Quantised(matrix.float(), matrix.float(), None)
    )
    expected = exact * gain.float()
    dy = torch.randn(4, 6, 12).to(dtype)
    found = (y, *torch.autograd.grad(y, (x, gain), dy))
    tolerance = {"rtol": 2e-2, "atol": 2e-1} if dtype == torch.bfloat16 else {"rtol": 1e-5, "atol": 1e-5}
    for a, b in zip(found, (expected, *torch.autograd.grad(expected, (x, gain), dy.float())), strict=True):
        torch.testing.assert_close(a.float(), b.float(), **tolerance)


def test_bfloat16_rounds_only_the_result() -> None:
    x, weight = torch.randn(40, 64).bfloat16(), torch.randn(24, 64).bfloat16()
    low = ternary_product(quantise_tokens(x), quantise_weight(weight))
    high = ternary_product(quantise_tokens(x.float()), quantise_weight(weight.float()))
    assert low.dtype == torch.bfloat16
    assert torch.equal(low, high.bfloat16())


def test_a_frozen_matrix_computes_no_weight_gradient() -> None:
    # float64 goes through aten::mm, which the counter sees; its forward product is 2 M N K as well.
    x = torch.randn(10, 32, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(16, 32, dtype=torch.float64, requires_grad=True)
    ternary = torch.randint(-1, 2, (16, 32), dtype=torch.int8)
    one_product = 2 * 10 * 16 * 32

    def count(product: str) -> int:
        with FlopCounterMode(display=False) as counter:
            tokens = quantise_tokens(x, "identity")
            y = (
                frozen_product(tokens, ternary, 1.0)
                if product == "frozen"
                else ternary_product(tokens, quantise_weight(weight, "identity"))
            )
            y.sum().backward()
        return counter.get_total_flops()

    assert count("trained") == 3 * one_product
    assert count("frozen") == 2 * one_product


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
    }
