"""Samplers: the same seed draws the same, grids are whole, Optuna learns and takes up where it was."""

from collections.abc import Callable
from typing import Any

import pytest

from rcdist.sweep.samplers import GridSampler, OptunaSampler, RandomSampler, Sampler
from rcdist.sweep.space import Space, Values, read_space
from tests.sweep.small import GRID, SPACE

OBJECTIVES = ["quality", "cost"]


def draw(sampler: Sampler, count: int) -> list[Values]:
    asked = [sampler.ask() for _ in range(count)]
    return [item[1] for item in asked if item is not None]


def test_grid_ends_after_every_combination() -> None:
    space = read_space(GRID)
    sampler = GridSampler(space)
    assert draw(sampler, 4) == list(space.grid())
    assert sampler.ask() is None


@pytest.mark.parametrize(
    "make", [lambda space: RandomSampler(space, 3), lambda space: OptunaSampler(space, OBJECTIVES, 3)]
)
def test_the_same_seed_draws_the_same(make: Callable[[Space], Sampler]) -> None:
    space = read_space(SPACE)
    first, second = draw(make(space), 8), draw(make(space), 8)
    assert first == second
    assert len({repr(values) for values in first}) > 4
    for values in first:
        assert 0.5 <= values["reservoir.input_scaling"] <= 2.0
        assert values["reservoir.topology"] in ("dense", "hadamard")


def test_whole_numbers_and_steps() -> None:
    space = read_space(
        {
            "seed": {"low": 1, "high": 100, "log": True},
            "data.seed": {"low": 0, "high": 6, "step": 3},
            "optimizer.beta1": {"low": 0.5, "high": 0.9, "step": 0.2},
        }
    )
    for sampler in (RandomSampler(space, 0), OptunaSampler(space, OBJECTIVES, 0)):
        for values in draw(sampler, 20):
            assert isinstance(values["seed"], int)
            assert 1 <= values["seed"] <= 100
            assert values["data.seed"] in (0, 3, 6)
            assert min(abs(values["optimizer.beta1"] - x) for x in (0.5, 0.7, 0.9)) < 1e-9


def score(values: Values) -> tuple[float, float]:
    """Prefer few letters and scalings near 1."""
    letters = len(values["reservoir.plan.letters"])
    return letters + abs(values["reservoir.input_scaling"] - 1.0), 3.0 - letters


def test_optuna_learns() -> None:
    """After some trials its best is closer to the best of all than chance has come."""
    found = []
    for sampler in (OptunaSampler(read_space(SPACE), OBJECTIVES[:1], 0), RandomSampler(read_space(SPACE), 0)):
        distances = []
        for _ in range(24):
            key, values = sampler.ask() or ("", {})
            distances.append(abs(values["reservoir.input_scaling"] - 1.0))
            sampler.tell(key, distances[-1:])
        found.append(min(distances))
    assert found[0] < found[1] / 2


def test_optuna_begins_with_what_it_is_given_unless_it_was_replayed() -> None:
    space = read_space(SPACE)
    first = [space.pick(lambda parameter: (parameter.choices or (parameter.high,))[-1])]
    assert draw(OptunaSampler(space, OBJECTIVES, 0, first=first), 2)[0] == first[0]
    again = OptunaSampler(space, OBJECTIVES, 0, replayed=first, first=first)
    again.tell(again.replay(first[0]), (1.0, 1.0))
    assert first[0] not in draw(again, 4)


def test_optuna_takes_up_what_an_earlier_job_asked_for() -> None:
    space = read_space(SPACE | {"reservoir.gain": [True, {"c": False}]})
    first = OptunaSampler(space, OBJECTIVES, 0)
    asked: list[Values] = []
    for _ in range(12):  # ten are drawn at random, and fit no Gaussian process
        key, values = first.ask() or ("", {})
        first.tell(key, score(values))
        asked.append(values)
    second = OptunaSampler(space, OBJECTIVES, 0, replayed=asked)
    for values in asked:
        second.tell(second.replay(values), score(values))
    study: Any = second._search._ot_study
    points = [tuple(trial.values) for trial in study.trials]
    assert points == [score(values) for values in asked]
    fresh = draw(second, 2)
    assert not any(values in asked for values in fresh)


def test_optuna_goes_on_after_a_failure() -> None:
    sampler = OptunaSampler(read_space(SPACE), OBJECTIVES, 0)
    for i in range(12):
        key, values = sampler.ask() or ("", {})
        sampler.tell(key, None if i % 2 else score(values))
    assert len(draw(sampler, 3)) == 3
