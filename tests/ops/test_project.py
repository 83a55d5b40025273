"""Products of one input: rounded weights that are kept for a scope, and what changes them."""

import torch

from rcdist.ops.project import Trained, project
from rcdist.ops.quantise import quantise_tokens
from rcdist.ops.weights import WeightsQuantisedOnce


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


def test_gradients_reach_the_weight_through_a_scope() -> None:
    tokens, weight = quantise_tokens(torch.randn(4, 24)), torch.randn(8, 24, requires_grad=True)
    with WeightsQuantisedOnce():
        total = sum(project(tokens, [Trained(weight)])[0].sum() for _ in range(2))
        total.backward()
    once = torch.autograd.grad(project(tokens, [Trained(weight)])[0].sum(), weight)[0]
    torch.testing.assert_close(weight.grad, 2 * once)
