"""rms_norm against hand numbers, torch's own and numerical gradients."""

import pytest
import torch

from rcdist.ops.norm import rms_norm


def test_hand_numbers() -> None:
    y = rms_norm(torch.tensor([[3.0, 4.0]]), torch.tensor([1.0, 2.0]), 0.0)
    # rms = sqrt(12.5)
    torch.testing.assert_close(y, torch.tensor([[3.0, 8.0]]) / 12.5**0.5)


def test_gradients_are_the_numerical_ones() -> None:
    x = torch.randn(2, 3, 7, dtype=torch.float64, requires_grad=True)
    gain = torch.randn(7, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, gain: rms_norm(x, gain, 1e-3), (x, gain))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_equals_torch_in_float32(dtype: torch.dtype) -> None:
    x = torch.randn(5, 33).to(dtype)
    gain = torch.rand(33).to(dtype)
    y = rms_norm(x, gain, 1e-6)
    assert y.dtype == dtype
    torch.testing.assert_close(y, torch.nn.functional.rms_norm(x.float(), (33,), gain.float(), 1e-6).to(dtype))
