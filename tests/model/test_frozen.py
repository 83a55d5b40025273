"""Frozen matrices: what each one is made from, its scale, and shapes that a topology refuses."""

import json

import pytest

from rcdist.config import ModelConfig, ReservoirConfig
from rcdist.errors import ConfigError
from rcdist.model.frozen import FrozenSpec, frozen_specs

MODEL = ModelConfig(num_layers=4, width=24, glu_width=40)


def test_specs_are_listed_once_in_order_of_use() -> None:
    specs = frozen_specs(MODEL, ReservoirConfig(plan="cG@a f+r cD@a+r@x c=@b"))
    assert [(spec.key, spec.letter, spec.shape) for spec in specs] == [
        ("c@a", "c", (24, 24)),
        ("G@a", "G", (40, 24)),
        ("f.1", "f", (24, 24)),
        ("r.1", "r", (24, 24)),
        ("D@a", "D", (24, 40)),
        ("r@x", "r", (24, 24)),
    ]
    assert frozen_specs(MODEL, ReservoirConfig(plan="T c=@b")) == []


def test_scale_is_unit_gain_times_the_setting() -> None:
    config = ReservoirConfig(
        plan="cD@a+r@a",
        connectivity={"c": 0.25, "r": 1.0},
        input_scaling={"c": 2.0, "D": 0.5},
        spectral_radius=0.9,
    )
    scales = {spec.letter: spec.scale for spec in frozen_specs(MODEL, config)}
    assert scales == pytest.approx({"c": 2 / 6**0.5, "D": 0.5 / 20**0.5, "r": 0.9 / 24**0.5})


def test_spec_survives_json() -> None:
    spec = FrozenSpec("c@a", "c", (5, 7), 11, "dense", 0.3, 1.0)
    assert FrozenSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec


def test_settings_by_letter() -> None:
    config = ReservoirConfig(
        plan="cD@a+r",
        seed={"c": 5},
        topology={"c": "hadamard", "D": "block", "r": "ring"},
        block_size={"D": 10},
        spectral_radius={"r": 0.7},
    )
    c, r, d = (next(s for s in frozen_specs(MODEL, config) if s.letter == letter) for letter in "crD")
    assert (c.seed, d.seed) == (5, 0)
    assert (c.topology, d.topology, r.topology) == ("hadamard", "block", "ring")
    assert (c.block_size, d.block_size, d.connectivity) == (0, 10, 0.5)
    assert (c.scale, d.scale, r.scale) == pytest.approx((1.0, 1 / 5**0.5, 0.7))
    assert (c.num_weights, d.num_weights, r.num_weights) == (0, 24 * 10, 0)


def test_a_gate_that_is_the_reservoir_takes_its_radius() -> None:
    settings = {"plan": "cg@a", "input_scaling": 3.0, "spectral_radius": 0.5}
    c, g = frozen_specs(MODEL, ReservoirConfig(placement="gate", **settings))
    assert g.scale == pytest.approx(c.scale / 6)
    _, plain = frozen_specs(MODEL, ReservoirConfig(**settings))
    assert plain.scale == pytest.approx(c.scale)


@pytest.mark.parametrize(
    ("model", "settings", "field", "numbers"),
    [
        ({"width": 20}, {"topology": "hadamard"}, "reservoir.topology", ("20 x 20", "8")),
        ({}, {"topology": "block", "block_size": 7}, "reservoir.block_size", ("24 x 24", "7")),
        ({"glu_width": 41}, {"topology": "block", "block_size": 8, "plan": "G"}, "reservoir.block_size", ("41 x 24",)),
    ],
)
def test_a_shape_that_does_not_fit_is_refused(model: dict, settings: dict, field: str, numbers: tuple) -> None:
    shape = MODEL.model_copy(update=model)
    with pytest.raises(ConfigError) as caught:
        frozen_specs(shape, ReservoirConfig(**{"plan": "c@a", **settings}))
    assert str(caught.value).startswith(f"{field}=")
    assert all(number in str(caught.value) for number in numbers)


def test_the_block_size_that_an_error_proposes_works() -> None:
    shape = MODEL.model_copy(update={"glu_width": 36})
    with pytest.raises(ConfigError, match=r"e\.g\. 2\b") as caught:
        frozen_specs(shape, ReservoirConfig(plan="G", topology="block", block_size=8 + 5))
    assert "36 x 24" in str(caught.value)
    (spec,) = frozen_specs(shape, ReservoirConfig(plan="G@a", topology="block", block_size=2))
    assert spec.num_weights == 72
