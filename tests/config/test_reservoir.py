"""Settings of the reservoir: what contradicts itself is refused in one line that says what to do."""

import pytest

from rcdist.config import ReservoirConfig
from rcdist.config.cli import config_from_dict
from rcdist.errors import ConfigError


@pytest.mark.parametrize(
    ("settings", "field", "says"),
    [
        ({"plan": "cf@a", "leak_rate": 0.3}, "reservoir.plan", "leak_rate=0.3"),
        ({"plan": "f=@a", "leak_rate": 0.3}, "reservoir.plan", "names f"),
        ({"plan": "cg@a", "output_gate": "none"}, "reservoir.plan", "output_gate=none"),
        ({"plan": "g=@a", "output_gate": "tied"}, "reservoir.plan", "names g"),
        ({"plan": "T", "output_gate": "tied", "leak_rate": 0.5}, "reservoir.output_gate", "leak_rate=0.5"),
        ({"plan": "g+r", "placement": "gate"}, "reservoir.plan", "W_g"),
        ({"plan": "f T+r", "placement": "gate", "gate": "f"}, "reservoir.plan", "W_f"),
        ({"plan": "c@a", "placement": "gate"}, "reservoir.plan", "no block freezes g"),
        ({"plan": "g=@a", "placement": "gate"}, "reservoir.plan", "no block freezes g"),
    ],
)
def test_contradictions_are_refused(settings: dict, field: str, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config_from_dict({"reservoir": settings})
    text = str(caught.value)
    assert text.startswith(f"{field}=")
    assert says in text
    assert text.count(". ") >= 1 and text.endswith(".")


@pytest.mark.parametrize(
    "settings",
    [
        {"topology": "cube"},
        {"topology": {"x": "ring"}},
        {"leak_rate": 0.0},
        {"leak_rate": 1.5},
        {"spectral_radius": 0.0},
        {"spectral_radius": {"r": 11.0}},
        {"connectivity": {"c": 0.0}},
        {"block_size": 0},
        {"seed": {"c": -1}},
        {"placement": "h"},
    ],
)
def test_values_out_of_range_are_refused(settings: dict) -> None:
    with pytest.raises(ConfigError) as caught:
        config_from_dict({"reservoir": settings})
    assert str(caught.value).startswith(f"reservoir.{next(iter(settings))}")


def test_maps_and_numbers_are_accepted() -> None:
    config = ReservoirConfig(
        plan="co@a+r@b",
        topology={"r": "ring", "c": "hadamard"},
        seed={"c": 1},
        gain={"r": False},
        spectral_radius={"r": 0.9},
        leak_rate=0.25,
        output_gate="none",
        placement="recurrent",
    )
    assert config.is_reservoir("r") and not config.is_reservoir("g")
    assert ReservoirConfig(plan="g@a", placement="gate").is_reservoir("g")
    assert ReservoirConfig(**config.model_dump()) == config
