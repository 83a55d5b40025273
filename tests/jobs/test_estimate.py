"""The cost of a configuration: totals are sums of rows, and the JSON object has the documented names."""

import json

import pytest

from rcdist.cli import read_config
from rcdist.estimate import describe_cost, format_cost
from rcdist.model.cost import count_parameters
from tests.jobs.run import run_in_process


def test_the_json_object(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_in_process("estimate.py", ["--config=370m", "--reservoir.plan=c@a", "--json"]) == 0
    cost = json.loads(capsys.readouterr().out)
    assert cost["parameters"] == {
        "stored": 350_015_488,
        "trained": 348_966_912,
        "frozen": 25_165_824,
        "unique": 1_048_576,
    }
    assert cost["flops_per_token"].keys() == {"train", "hardware", "prefill", "decode"}
    assert cost["flops_per_token"]["train"] == 6 * 341_049_344 - 2 * 25_165_824


@pytest.mark.parametrize("plan", ["T", "T cG@a", "fcgoGUD@a c=@b+r"])
def test_rows_add_up(plan: str) -> None:
    config = read_config([f"--reservoir.plan={plan}"], "test")
    cost = describe_cost(config)
    for name in ("train", "decode"):
        assert sum(row[f"{name}_flops"] for row in cost["matrices"]) == cost["flops_per_token"][name]
    frozen = [row for row in cost["matrices"] if " frozen" in row["matrix"]]
    assert sum(row["weights"] for row in frozen) == cost["parameters"]["unique"]
    assert (
        sum(row["weights"] // row["num_distinct"] * row["num_applied"] for row in frozen)
        == cost["parameters"]["frozen"]
    )
    counts = count_parameters(config.model, config.reservoir)
    assert cost["parameters"]["stored"] == counts.stored


def test_the_table_names_every_group_and_the_totals(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_in_process("estimate.py", []) == 0
    table = capsys.readouterr().out
    assert table.strip() == format_cost(read_config([], "test")).strip()
    for text in (
        "c frozen, dense, shared as a",
        "G frozen, dense, shared as a",
        "U trained",
        "5,253,376 parameters stored",
    ):
        assert text in table


def test_bad_settings_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_in_process("estimate.py", ["--model.width=3", "--json"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
