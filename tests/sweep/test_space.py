"""The space: what is read, what is refused before the first trial, and what a grid is."""

from typing import Any

import pytest
import yaml

from rcdist.errors import ConfigError
from rcdist.sweep.space import first_combinations, read_space

FULL = """
reservoir:
  plan: {letters: [c, cG], pattern: [x, T x], share: [null, a]}
  topology: [dense, {c: dense, G: hadamard}]
  block_size: {values: [32, 64], when: {reservoir.output_gate: none}}
  output_gate: [full, none]
optimizer.learning_rate: {low: 0.001, high: 0.01, log: true}
seed: {low: 0, high: 4, step: 2}
"""


def test_read_keeps_order_but_for_conditions() -> None:
    space = read_space(yaml.safe_load(FULL))
    assert [parameter.name for parameter in space.parameters] == [
        "reservoir.plan.letters",
        "reservoir.plan.pattern",
        "reservoir.plan.share",
        "reservoir.topology",
        "reservoir.output_gate",
        "reservoir.block_size",
        "optimizer.learning_rate",
        "seed",
    ]


def test_parts_of_a_plan_become_the_plan_and_conditions_hold() -> None:
    space = read_space(yaml.safe_load(FULL))
    first = {p.name: (p.choices or (p.low,))[-1] for p in space.parameters}
    values = space.pick(lambda parameter: first[parameter.name])
    assert values["reservoir.block_size"] == 64
    settings = space.settings(values)
    assert settings["reservoir.plan"] == "T cG@a"
    assert not any(name.startswith("reservoir.plan.") for name in settings)
    first["reservoir.output_gate"] = "full"
    assert "reservoir.block_size" not in space.pick(lambda parameter: first[parameter.name])


def test_grid_is_every_combination_once() -> None:
    space = read_space(yaml.safe_load(FULL.replace("optimizer.learning_rate: {low: 0.001, high: 0.01, log: true}", "")))
    found = [repr(values) for values in space.grid()]
    assert len(found) == len(set(found)) == 2 * 2 * 2 * 2 * (1 + 2) * 3


def test_grid_of_steps() -> None:
    tree = {"seed": {"low": 0, "high": 5, "step": 2}, "optimizer.beta1": {"low": 0.8, "high": 0.95, "step": 0.05}}
    seed, beta = read_space(tree).parameters
    assert seed.grid() == [0, 2, 4]
    assert beta.grid() == pytest.approx([0.8, 0.85, 0.9, 0.95])


def test_first_combinations_cover_every_choice() -> None:
    space = read_space(yaml.safe_load(FULL))
    found = list(first_combinations(space, 500))
    assert 0 < len(found) <= 500
    for parameter in space.parameters:
        seen = [values[parameter.name] for values in found if parameter.name in values]
        for wanted in parameter.choices or (parameter.low, parameter.high):
            assert wanted in seen


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({}, "space=None: nothing is searched"),
        ({"reservoir.plam": ["c"]}, "The nearest one is reservoir.plan"),
        ({"reservoir": {"topologie": ["dense"]}}, "The nearest one is reservoir.topology"),
        ({"reservoir.plan": []}, "there is nothing to choose from"),
        ({"reservoir.plan": {"values": []}}, "there is nothing to choose from"),
        ({"reservoir.plan": "c"}, "is one value"),
        ({"reservoir.plan": ["c", "T cX"]}, r'space.reservoir.plan="T cX": unknown matrix letter'),
        ({"reservoir.plan": {"letter": ["c"]}}, "is no part of a plan"),
        ({"reservoir.plan": {"pattern": ["T"]}}, "is no pattern"),
        ({"reservoir.topology": ["dens"]}, r'space.reservoir.topology="dens": must be one of dense'),
        ({"reservoir.topology": ["dense", "dense"]}, "stands twice"),
        ({"reservoir.connectivity": {"low": 0.9, "high": 0.1}}, "the range is reversed"),
        ({"reservoir.connectivity": {"low": 0.5, "high": 1.5}}, r"space.reservoir.connectivity=1.5: must be less than"),
        ({"reservoir.connectivity": {"low": 0.5}}, "is no range of numbers"),
        ({"reservoir.connectivity": {"low": 0.1, "high": 1.0, "log": True, "step": 0.1}}, "has no step"),
        ({"reservoir.connectivity": {"low": 0.1, "high": 1.0, "step": 0}}, "a step is above 0"),
        ({"reservoir.connectivity": {"lo": 0.1, "high": 1.0}}, "is no word of a parameter"),
        ({"seed": {"values": [0, 1], "when": {"reservoir.gate": "g"}}}, "is no parameter of the space"),
        ({"data.seed": [0, 1], "seed": {"values": [0, 1], "when": {"data.seed": 5}}}, "is never that"),
        ({"storage_path": ["a", "b"]}, "says where a run is"),
        ({"tracking.experiment": ["a"]}, "says where a run is"),
    ],
)
def test_what_no_run_takes_is_refused(tree: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_space(tree)


def test_conditions_in_a_circle_are_refused() -> None:
    tree = {
        "seed": {"values": [0, 1], "when": {"data.seed": 0}},
        "data.seed": {"values": [0, 1], "when": {"seed": 0}},
    }
    with pytest.raises(ConfigError, match="in a circle"):
        read_space(tree)


def test_a_grid_needs_steps() -> None:
    space = read_space({"reservoir.connectivity": {"low": 0.1, "high": 1.0}})
    with pytest.raises(ConfigError, match="a grid needs a step"):
        next(space.grid())
