"""Flat sums lie where each parameter's offset says, and become its gradient in its dtype."""

import torch
from torch import nn

from rcdist.train.flat_gradients import FlatGradients, Layout, plain_layouts

CPU = torch.device("cpu")


def test_sums_lie_at_the_offsets_and_padding_stays_zero() -> None:
    a, b = nn.Parameter(torch.zeros(2, 3)), nn.Parameter(torch.zeros(2))
    gradients = FlatGradients([Layout([a, b], [0, 8], 12)], CPU)
    for _ in range(2):
        gradients.add([torch.arange(6.0).view(2, 3), torch.tensor([10.0, 20.0], dtype=torch.bfloat16)])
    (flat,) = gradients.share_out(torch.float32, 1)
    assert flat.tolist() == [0, 2, 4, 6, 8, 10, 0, 0, 20, 40, 0, 0]
    gradients.clear()
    assert not flat.any()


def test_small_neighbours_are_added_together_and_large_ones_alone() -> None:
    sizes = [3, 2, 2**17, 4, 1]
    parameters = [nn.Parameter(torch.zeros(size)) for size in sizes]
    gradients = FlatGradients(plain_layouts([{"params": parameters}]), CPU)
    assert [len(run) for run in gradients._runs] == [2, 1, 2]
    made = [torch.randn(size) for size in sizes]
    gradients.add(made)
    gradients.add([made[0], None, made[2], made[3], made[4]])
    (flat,) = gradients.share_out(torch.float32, 1)
    assert torch.equal(flat, torch.cat([2 * made[0], made[1], 2 * made[2], 2 * made[3], 2 * made[4]]))


def test_a_parameter_without_gradient_has_a_sum_of_zero() -> None:
    a, b = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(1))
    gradients = FlatGradients(plain_layouts([{"params": [a]}, {"params": [b]}]), CPU)
    gradients.add([None, torch.ones(1)])
    assert [part.tolist() for part in gradients.sum_over_workers(torch.float32, 1)] == [[0, 0], [1]]


def test_sums_of_small_numbers_are_not_lost_in_bfloat16() -> None:
    weight = nn.Parameter(torch.zeros(1, dtype=torch.bfloat16))
    gradients = FlatGradients(plain_layouts([{"params": [weight]}]), CPU)
    for value in (1.0, *[2.0**-10] * 1024):  # in bfloat16, 1 + 2^-10 is 1
        gradients.add([torch.tensor([value], dtype=torch.bfloat16)])
    gradients.hand_over()
    assert weight.grad is not None and weight.grad.dtype == torch.bfloat16
    assert weight.grad.tolist() == [2.0]
