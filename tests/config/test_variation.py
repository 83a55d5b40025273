"""A run like another one: dotted keys, maps by letter, seeds; what cannot be is said by its key."""

import pytest

from rcdist.config import JobConfig
from rcdist.config.variation import vary
from rcdist.errors import ConfigError


def test_keys_are_changed_and_the_rest_is_kept() -> None:
    base = JobConfig(name="a", train={"steps": 7})
    found = vary(base, "b", {"reservoir.plan": "c@a", "model.init_gain.o": 0.5, "optimizer.learning_rate": 0.01})
    assert (found.name, found.train.steps, found.reservoir.plan, found.optimizer.learning_rate) == ("b", 7, "c@a", 0.01)
    assert found.model.init_gain == {**base.model.init_gain, "o": 0.5}  # type: ignore[dict-item]
    assert found.cluster.num_workers == 1
    assert base.reservoir.plan != "c@a"


def test_a_seed_is_added_to_all_three() -> None:
    base = JobConfig(seed=5, data={"seed": 6}, reservoir={"seed": {"c": 7, "G": 8}})
    found = vary(base, "b", {}, seed=10)
    assert (found.seed, found.data.seed, found.reservoir.seed) == (15, 16, {"c": 17, "G": 18})
    assert vary(JobConfig(), "b", {}, seed=3).reservoir.seed == 3


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"reservoir.plam": "T"}, "reservoir.plam"),
        ({"reservior.plan": "T"}, "reservior"),
        ({"reservoir.connectivity.G": "0.5"}, "reservoir.connectivity.G"),
        ({"reservoir.plan": "Q"}, "reservoir.plan"),
    ],
)
def test_what_cannot_be_is_refused_by_its_key(settings: dict[str, str], field: str) -> None:
    with pytest.raises(ConfigError) as caught:
        vary(JobConfig(), "b", settings)
    assert caught.value.field == field
