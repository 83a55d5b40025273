"""summed_cross_entropy equals torch's, over several chunks, with weights, and refuses a second backward pass."""

import pytest
import torch
from torch.nn import functional as F

from rcdist.ops.cross_entropy import summed_cross_entropy


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1, 2), (37, 33), (5, 300_000)])
def test_equals_torch(shape: tuple[int, int], dtype: torch.dtype) -> None:
    logits = (torch.randn(shape) * 5).to(dtype).requires_grad_()
    targets, weights = torch.randint(shape[1], shape[:1]), torch.rand(shape[0])
    weights[0] = 0
    wide = logits.detach().double().requires_grad_()
    expected = torch.dot(F.cross_entropy(wide, targets, reduction="none"), weights.double())
    (expected_gradient,) = torch.autograd.grad(3 * expected, wide)
    loss = summed_cross_entropy(logits * 1, targets, weights)
    assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-5)
    (gradient,) = torch.autograd.grad(3 * loss, logits)
    tolerance = 1e-2 if dtype == torch.bfloat16 else 1e-5
    torch.testing.assert_close(gradient.double(), expected_gradient, rtol=tolerance, atol=tolerance)


def test_logits_are_left_alone_without_gradient() -> None:
    logits, targets = torch.randn(4, 9), torch.tensor([0, 8, 3, 3])
    before = logits.clone()
    torch.testing.assert_close(summed_cross_entropy(logits, targets), F.cross_entropy(before, targets, reduction="sum"))
    assert torch.equal(logits, before)


def test_a_second_backward_pass_is_refused() -> None:
    logits = torch.randn(4, 9, requires_grad=True)
    loss = summed_cross_entropy(logits * 1, torch.tensor([0, 8, 3, 3]))
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="inplace operation"):
        loss.backward()


def test_not_finite_logits_give_a_not_finite_loss() -> None:
    logits = torch.randn(3, 5)
    logits[1, 2] = float("nan")
    assert summed_cross_entropy(logits, torch.tensor([0, 0, 0])).isnan()
