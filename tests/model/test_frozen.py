"""Frozen matrices: their specifications, their golden bytes, and the statistics that unit gain rests on."""

import hashlib
import json

import numpy as np
import pytest

from rcdist.config import ModelConfig, ReservoirConfig
from rcdist.model.frozen import FrozenSpec, frozen_specs, generate_ternary

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


def test_golden_bytes() -> None:
    spec = FrozenSpec("c@a", "c", (5, 7), 11, "dense", 0.3, 1.0)
    matrix = generate_ternary(spec)
    assert matrix.dtype == np.int8
    assert matrix.shape == (5, 7)
    assert (
        hashlib.sha256(matrix.tobytes()).hexdigest()
        == "bab98699ef7b1b514d37fa86fb613d2bf95fc529003a380c3916fad5cf3f7012"
    )


def test_bytes_follow_seed_and_key_but_not_scale() -> None:
    def make(key: str = "c@a", seed: int = 0, scale: float = 1.0) -> bytes:
        return generate_ternary(FrozenSpec(key, "c", (16, 16), seed, "dense", 0.5, scale)).tobytes()

    assert make() == make(scale=2.0)
    assert len({make(), make(key="c.1"), make(seed=1)}) == 3


@pytest.mark.parametrize("connectivity", [0.01, 0.5, 1.0])
def test_shares_of_the_three_values(connectivity: float) -> None:
    matrix = generate_ternary(FrozenSpec("c@a", "c", (1000, 1001), 0, "dense", connectivity, 1.0))
    for value, expected in ((1, connectivity / 2), (-1, connectivity / 2), (0, 1 - connectivity)):
        assert abs((matrix == value).mean() - expected) < 0.002
    # Entries of neighbouring 32-bit words, rows and columns are independent.
    signs = matrix.astype(np.float64)
    for other in (np.roll(signs, 1, 0), np.roll(signs, 1, 1)):
        assert abs((signs * other).mean()) < 0.005 * connectivity


def test_unit_gain_and_spectral_radius() -> None:
    (spec,) = frozen_specs(ModelConfig(num_layers=1, width=512), ReservoirConfig(plan="T+r@a", spectral_radius=0.8))
    matrix = generate_ternary(spec) * spec.scale
    assert abs(np.abs(np.linalg.eigvals(matrix)).max() - 0.8) < 0.06
    x = np.random.default_rng(0).standard_normal((512, 64))
    assert abs((matrix @ x).std() - 0.8) < 0.03


def test_spec_survives_json() -> None:
    spec = FrozenSpec("c@a", "c", (5, 7), 11, "dense", 0.3, 1.0)
    assert FrozenSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec
