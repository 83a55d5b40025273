"""Which token is chosen: at any temperature, among the known ids only."""

import pytest
import torch

from rcdist.inference.generate import Sampling, choose


@pytest.mark.parametrize("temperature", [0.0, 5e-324, 1e-320, 1e-39, 1e-6])
@pytest.mark.parametrize("flushes", [False, True])
def test_next_to_no_temperature_takes_the_most_likely(temperature: float, flushes: bool) -> None:
    torch.set_flush_denormal(flushes)
    logits_V = torch.tensor([1.0, 3.0, -torch.inf, 2.9], dtype=torch.float64)
    generator = torch.Generator("cpu").manual_seed(0)
    assert {choose(logits_V, Sampling(temperature), generator) for _ in range(50)} == {1}


def test_an_id_that_is_masked_is_never_chosen() -> None:
    logits_V = torch.tensor([0.0, 9.0, 0.0], dtype=torch.float64)
    logits_V[1] = -torch.inf
    generator = torch.Generator("cpu").manual_seed(0)
    assert {choose(logits_V, Sampling(10.0, top_k=3), generator) for _ in range(50)} == {0, 2}


@pytest.mark.parametrize(
    ("top_p", "kept"), [(1e-9, {2}), (0.59, {2}), (0.61, {2, 0}), (0.95, {2, 0, 3}), (1.0, {0, 1, 2, 3})]
)
def test_top_p_keeps_the_most_likely_that_reach_it(top_p: float, kept: set[int]) -> None:
    logits_V = torch.tensor([0.3, 0.03, 0.6, 0.07], dtype=torch.float64).log()
    generator = torch.Generator("cpu").manual_seed(0)
    assert {choose(logits_V, Sampling(1.0, top_p=top_p), generator) for _ in range(600)} == kept
