"""The job that says what a configuration costs: its table, its JSON object, its errors."""

import json

import pytest

from rcdist.config.cli import read_config
from rcdist.estimate import format_cost
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
    assert cost["run"].keys() >= {"memory_bytes_per_worker", "least_s", "least_usd", "workers"}
    assert cost["flops_per_token"]["train"] == 6 * 341_049_344 - 2 * 25_165_824


def test_the_table_names_every_group_and_the_totals(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_in_process("estimate.py", []) == 0
    table = capsys.readouterr().out
    assert table.startswith(format_cost(read_config([], "test")))
    for text in (
        "memory per worker: 57 MiB",
        "at least ",
        "c frozen, dense, shared as a",
        "G frozen, dense, shared as a",
        "U trained",
        "5,253,376 parameters stored",
    ):
        assert text in table


def test_bad_settings_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_in_process("estimate.py", ["--model.width=3", "--json"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
