"""The job that breaks runs: its list, its errors, and the temporary folder that is deleted when all is well."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from rcdist.chaos import runner
from rcdist.chaos.verdict import Verdict
from tests.jobs.run import run_in_process


def test_list_prints_the_table_and_does_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_in_process("chaos.py", ["--faults=list"]) == 0
    assert capsys.readouterr().out.strip() == runner.list_faults()


def test_an_unknown_fault_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_in_process("chaos.py", ["--faults=sigterm,flood"]) == 2
    line = capsys.readouterr().err
    assert line.startswith('faults="flood": not one of kill-forward, ') and line.count("\n") == 1


@pytest.mark.parametrize("failures", [[], ["exit code 1, not 0"]])
def test_the_temporary_folder_is_deleted_unless_there_is_something_to_look_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], failures: list[str]
) -> None:
    def run_faults(made: runner.Runner, names: Sequence[str], *_: Any) -> list[Verdict]:
        (made.storage / "runs").mkdir()
        return [Verdict(name, failures) for name in names]

    monkeypatch.setattr(runner, "run_faults", run_faults)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setenv("RAY_ADDRESS", "nowhere")
    assert run_in_process("chaos.py", ["--faults=sigterm", "--repeats=1"]) == (1 if failures else 0)
    assert len(list(tmp_path.iterdir())) == (1 if failures else 0)
    assert f"sigterm    {0 if failures else 1}/1" in capsys.readouterr().out
