"""Products of one input: hand numbers, straight-through gradients, every topology; weights kept for a scope."""

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from rcdist.ops.backend import forced
from rcdist.ops.project import Frozen, Projection, Trained, project
from rcdist.ops.quantise import Quantised, quantise_tokens, quantise_weight
from rcdist.ops.topology import DenseMap
from rcdist.ops.weights import WeightsQuantisedOnce
from tests.ops.cases import make_bank


def reference(tokens: Quantised, projection: Projection) -> Tensor:
    with forced("reference"):
        return project(tokens, [projection])[0]


def dense(ternary: Tensor, scale: float = 1.0) -> Frozen:
    return Frozen(DenseMap({"ternary": ternary}, (ternary.shape[0], ternary.shape[1])), scale)


def straight_through(q: Quantised) -> Tensor:
    """Return the dequantised tensor as x + (Q(x) - x).detach()."""
    values = q.values if q.scale is None else q.values.to(q.handle.dtype) * q.scale
    return q.handle + (values - q.handle).detach()


def test_straight_through_by_hand() -> None:
    x = torch.tensor([[2.0, -1.0]], requires_grad=True)
    weight = torch.tensor([[1.0, 0.1], [-0.5, 0.4]], requires_grad=True)
    tokens, matrix = quantise_tokens(x), quantise_weight(weight)
    assert tokens.values.tolist() == [[127, -64]]
    assert matrix.values.tolist() == [[1, 0], [-1, 1]]  # beta 0.5
    y = reference(tokens, Trained(weight))
    q = 2 / 127 * 64
    torch.testing.assert_close(y, 0.5 * torch.tensor([[2.0, -2.0 - q]]))
    y.backward(torch.tensor([[1.0, 10.0]]))
    # dx = dy Q(W); dW = dy^T Q(x): nothing is masked, nothing of the quantisers is differentiated.
    torch.testing.assert_close(x.grad, torch.tensor([[0.5 - 5.0, 5.0]]))
    torch.testing.assert_close(weight.grad, torch.tensor([[2.0, -q], [20.0, -10 * q]]))


@pytest.mark.parametrize("rounding", ["nearest", "identity"])
@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (2, 5, 33, 7), (1, 63, 8, 65), (3, 20, 64, 32)])
def test_a_trained_product_equals_the_dequantised_one(shape: tuple[int, int, int, int], rounding: str) -> None:
    batch, time, inputs, outputs = shape
    x = torch.randn(batch, time, inputs, requires_grad=True)
    weight = torch.randn(outputs, inputs, requires_grad=True)
    tokens = quantise_tokens(x, rounding)
    y = reference(tokens, Trained(weight, rounding))
    expected = straight_through(tokens) @ straight_through(quantise_weight(weight, rounding)).t()
    dy = torch.randn_like(y)
    for a, b in zip(
        (y, *torch.autograd.grad(y, (x, weight), dy)),
        (expected, *torch.autograd.grad(expected, (x, weight), dy)),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("has_gain", [True, False])
@pytest.mark.parametrize(
    ("topology", "letter"),
    [("dense", "c"), ("dense", "D"), ("block", "G"), ("hadamard", "G"), ("hadamard", "D"), ("ring", "c")],
)
def test_a_frozen_product_equals_the_dequantised_one(
    topology: str, letter: str, has_gain: bool, dtype: torch.dtype
) -> None:
    bank = make_bank(letter, topology, 24, 48)
    (spec,) = bank.specs
    outputs, inputs = spec.shape
    matrix = bank.linear_map(spec.key)
    table = matrix.times(torch.eye(inputs)).t()
    x = torch.randn(4, 6, inputs).to(dtype).requires_grad_()
    gain = torch.randn(outputs).to(dtype).requires_grad_() if has_gain else None
    leaves = [leaf for leaf in (x, gain) if leaf is not None]
    tokens = quantise_tokens(x)
    y = reference(tokens, Frozen(matrix, 0.25, gain))
    assert y.dtype == dtype
    straight = x.float() + (tokens.values * tokens.scale - x.float()).detach()
    expected = straight @ (table * 0.25).t() * (1.0 if gain is None else gain.float())
    dy = torch.randn(4, 6, outputs).to(dtype)
    found = (y, *torch.autograd.grad(y, leaves, dy))
    tolerance = {"rtol": 2e-2, "atol": 2e-1} if dtype == torch.bfloat16 else {"rtol": 1e-5, "atol": 1e-5}
    for a, b in zip(found, (expected, *torch.autograd.grad(expected, leaves, dy.float())), strict=True):
        torch.testing.assert_close(a.float(), b.float(), **tolerance)


def test_codes_are_summed_exactly() -> None:
    values = torch.full((1, 4099), 127, dtype=torch.int8)
    y = reference(Quantised(torch.zeros(1, 4099), values, None), dense(torch.ones(3, 4099, dtype=torch.int8)))
    assert y.tolist() == [[127.0 * 4099] * 3]


def test_bfloat16_rounds_only_the_result() -> None:
    x, weight = torch.randn(40, 64).bfloat16(), torch.randn(24, 64).bfloat16()
    low = reference(quantise_tokens(x), Trained(weight))
    high = reference(quantise_tokens(x.float()), Trained(weight.float()))
    assert low.dtype == torch.bfloat16
    assert torch.equal(low, high.bfloat16())


def test_int8_is_what_is_saved_for_backward() -> None:
    x, weight = torch.randn(10, 32, requires_grad=True), torch.randn(16, 32, requires_grad=True)
    saved: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        reference(quantise_tokens(x), Trained(weight))
    assert {(tuple(t.shape), t.dtype) for t in saved} == {((10, 32), torch.int8), ((10,), torch.float32)}


def test_a_frozen_matrix_computes_no_weight_gradient() -> None:
    # float64 goes through aten::mm, which the counter sees; its forward product is 2 M N K as well.
    x = torch.randn(10, 32, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(16, 32, dtype=torch.float64, requires_grad=True)

    def count(projection: Projection) -> int:
        with FlopCounterMode(display=False) as counter:
            reference(quantise_tokens(x, "identity"), projection).sum().backward()
        return counter.get_total_flops()

    assert count(Trained(weight, "identity")) == 3 * 2 * 10 * 16 * 32
    assert count(dense(torch.randint(-1, 2, (16, 32), dtype=torch.int8))) == 2 * 2 * 10 * 16 * 32


def test_weights_are_rounded_once_while_a_scope_is_entered() -> None:
    tokens, weight = quantise_tokens(torch.randn(4, 24)), torch.randn(8, 24)

    def run() -> torch.Tensor:
        return project(tokens, [Trained(weight)])[0]

    first, scope = run(), WeightsQuantisedOnce()
    with scope:
        assert torch.equal(run(), first)
        weight.mul_(2)
        assert torch.equal(run(), first)  # nothing may change them inside: this is what it would look like
        with WeightsQuantisedOnce():
            assert torch.equal(run(), 2 * first)
        assert torch.equal(run(), first)
    assert torch.equal(run(), 2 * first)
    with scope:
        assert torch.equal(run(), first)


def test_a_gain_is_multiplied_by_its_scale_once_while_a_scope_is_entered() -> None:
    tokens, gain = quantise_tokens(torch.randn(4, 24)), torch.rand(8) + 0.5
    matrix = DenseMap({"ternary": torch.randint(-1, 2, (8, 24), dtype=torch.int8)}, (8, 24))

    def run() -> torch.Tensor:
        return project(tokens, [Frozen(matrix, 0.5, gain)])[0]

    first, scope = run(), WeightsQuantisedOnce()
    with scope:
        assert torch.equal(run(), first)
        gain.mul_(2)
        assert torch.equal(run(), first)
        scope.round_again()
        assert torch.equal(run(), 2 * first)
        other = project(tokens, [Frozen(matrix, 1.0, gain)])[0]  # the same gain at another scale is another factor
        torch.testing.assert_close(other, 4 * first)


def test_gradients_reach_the_weight_through_a_scope() -> None:
    tokens, weight = quantise_tokens(torch.randn(4, 24)), torch.randn(8, 24, requires_grad=True)
    with WeightsQuantisedOnce():
        total = sum(project(tokens, [Trained(weight)])[0].sum() for _ in range(2))
        total.backward()
    once = torch.autograd.grad(project(tokens, [Trained(weight)])[0].sum(), weight)[0]
    torch.testing.assert_close(weight.grad, 2 * once)
