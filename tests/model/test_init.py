"""Initial values follow (seed, name) and have the gain they say."""

import pytest
import torch

from rcdist.config import ModelConfig
from rcdist.model.init import InitKey, matrix_std
from rcdist.ops.project import Trained, project
from rcdist.ops.quantise import quantise_tokens


def test_values_follow_seed_and_name() -> None:
    def draw(seed: int, *parts: str) -> torch.Tensor:
        key = InitKey(seed)
        for part in parts:
            key = key.at(part)
        return key.normal((4, 4), 1.0).detach()

    torch.manual_seed(1)
    first = draw(0, "blocks", "weight")
    torch.manual_seed(2)
    assert torch.equal(draw(0, "blocks.weight"), first)
    assert not torch.equal(draw(1, "blocks", "weight"), first)
    assert not torch.equal(draw(0, "blocks", "other"), first)


def test_std_of_each_matrix() -> None:
    config = ModelConfig(num_layers=8, init_gain={"o": 0.5})
    assert matrix_std(config, "o", 100) == pytest.approx(0.5 * 0.1508)
    assert matrix_std(config, "c", 100) == pytest.approx(0.8 * 0.1508)
    assert matrix_std(config, "D", 100) == pytest.approx(0.8 * 0.1508 / 4)
    assert matrix_std(ModelConfig(init_gain=2.0), "G", 4) == pytest.approx(1.508)


def test_unit_gain_of_a_quantised_matrix() -> None:
    std = matrix_std(ModelConfig(init_gain=1.0), "c", 512)
    x = torch.randn(256, 512, generator=torch.Generator().manual_seed(0))
    (y,) = project(quantise_tokens(x), [Trained(InitKey(0, "w").normal((512, 512), std))])
    assert abs(y.std() - 1) < 0.02
