"""The job that says what a configuration costs: its table, its JSON object, its errors."""

import json

import pytest

from rcdist.config.cli import read_config
from rcdist.estimate.cost import format_cost
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
    plan = ["--reservoir.plan=T cG@a"]
    assert run_in_process("estimate.py", plan) == 0
    table = capsys.readouterr().out
    assert table.startswith(format_cost(read_config(plan, "test")))
    for text in (
        "memory per worker: 57 MiB",
        "at least ",
        "c frozen, dense, shared as a",
        "G frozen, dense, shared as a",
        "U trained",
        "5,253,376 parameters stored",
    ):
        assert text in table


def test_a_node_type_that_has_room_and_one_that_has_not(capsys: pytest.CaptureFixture[str]) -> None:
    given = ["--config=1.3b", "--cluster.num_workers=8", "--json"]
    assert run_in_process("estimate.py", [*given, "--cost.node_type=H100"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["fits"] and found["device"] == "GPU" and found["workers"] == 8
    parts = dict(found["memory"])
    assert parts.pop("total_bytes") == sum(parts.values()) and found["memory"]["total_bytes"] < 80e9
    assert 0 < found["tokens_per_s"]["low"] < found["tokens_per_s"]["high"] and found["hours"] > 0
    assert found["cheapest"]["usd"] <= found["usd"]
    assert [row["workers"] for row in found["scaling"]] == [2**power for power in range(11)]
    assert run_in_process("estimate.py", [*given, "--cost.node_type=A10G"]) == 3
    out, err = capsys.readouterr()
    assert not json.loads(out)["fits"] and json.loads(out)["fits_at_stage"]["3"] is False
    assert err.count("\n") == 1 and 'cost.node_type="A10G": a worker takes 2' in err and "H100 would do" in err


@pytest.mark.parametrize("given", ["--model.width=3", "--deepspeed={zero_optimization: 3}"])
def test_bad_settings_are_one_line(given: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_in_process("estimate.py", [given, "--json"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
