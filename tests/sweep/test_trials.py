"""The journal keeps every trial's newest state, whatever cuts it off; equal runs have one identity."""

from pathlib import Path
from typing import Any

import pytest

from rcdist.config import JobConfig
from rcdist.sweep.trials import Journal, Trial, front_of, identify
from tests.sweep.small import finished

OBJECTIVES = ["eval/bits_per_byte", "cost/usd"]


def test_journal_reads_back_the_newest_state(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "trials.jsonl")
    journal.put(Trial(0, "T"))
    journal.put(Trial(1, "c", values={"a": {"b": [1, None]}}))
    journal.put(finished(0, 2.0, 1.0, mlflow_run_id="x"))
    again = Journal(tmp_path / "trials.jsonl")
    assert again.trials == journal.trials
    assert [trial.status for trial in again.trials] == ["finished", "running"]
    assert again.next_number == 2
    assert Journal(tmp_path / "none.jsonl").next_number == 0


def test_a_line_that_was_cut_off_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "trials.jsonl"
    journal = Journal(path)
    journal.put(finished(0, 2.0, 1.0))
    whole = path.read_text()
    journal.put(finished(1, 1.0, 2.0))
    path.write_text(path.read_text()[: len(whole) + 40])
    again = Journal(path)
    assert [trial.number for trial in again.trials] == [0]
    again.put(finished(1, 1.5, 2.0))
    assert [trial.qualities["eval/bits_per_byte"] for trial in Journal(path).trials] == [2.0, 1.5]


def test_front_is_of_finished_trials_of_the_search() -> None:
    trials = [
        finished(0, 2.0, 1.0),
        finished(1, 1.5, 2.0),
        finished(2, 2.5, 2.0),
        finished(3, 1.0, 0.1, status="stopped"),
        finished(4, 1.0, 0.1, repeats=1, seed=1),
    ]
    assert [trial.number for trial in front_of(trials, OBJECTIVES)] == [1, 0]


def config(plan: str, **reservoir: Any) -> JobConfig:
    return JobConfig(reservoir={"plan": plan, **reservoir})


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (config("T"), config("T", topology="hadamard", input_scaling=2.0)),
        (config("c"), config("c", topology={"c": "dense", "G": "hadamard"})),
        (config("c"), config("c", spectral_radius=0.5, gain={"G": False}, combine="add")),
        (config("T c"), config("T c T c")),
        (config("c"), config("c").model_copy(update={"name": "other", "storage_path": "/x"})),
        (config("c", topology="hadamard"), config("c", topology="hadamard", connectivity=0.1)),
    ],
)
def test_settings_of_what_is_not_there_make_no_other_run(one: JobConfig, other: JobConfig) -> None:
    assert identify(one) == identify(other)


@pytest.mark.parametrize(
    "other",
    [
        config("c", topology="hadamard"),
        config("c@a"),
        config("c", input_scaling=2.0),
        config("c", gain=False),
        config("c", output_gate="none"),
        config("c", leak_rate=0.1),
        config("c", seed=1),
        config("c").model_copy(update={"seed": 1}),
        config("c+r"),
    ],
)
def test_everything_else_does(other: JobConfig) -> None:
    assert identify(config("c")) != identify(other)
