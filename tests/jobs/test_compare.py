"""The job that compares: names first, a page where it is asked for, errors in one line."""

import json
import shutil
from pathlib import Path

import pytest

from tests.jobs.run import run_in_process
from tests.test_compare import record


@pytest.fixture
def storage(tmp_path: Path, mlflow_db: Path) -> Path:
    shutil.copy(mlflow_db, tmp_path / "mlflow.db")
    from rcdist.tracking.mlflow import check_server

    uri = f"sqlite:///{tmp_path}/mlflow.db"
    check_server(uri, "rcdist", 10.0)
    record(uri, "T", "dense", 0, 2.0)
    record(uri, "c@a", "dense", 0, 2.1)
    return tmp_path


def test_table_page_and_json(storage: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["T-0", "ca-0", f"--storage_path={storage}"]
    assert run_in_process("compare.py", [*arguments, f"--out={storage}/page"]) == 0
    out = capsys.readouterr().out
    assert "+0.1000" in out
    assert out.splitlines()[-1] == f"{storage}/page/comparison.html"
    assert "paper: -19 % parameters" in (storage / "page" / "comparison.html").read_text()
    assert run_in_process("compare.py", [*arguments, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [row["runs"] for row in found["groups"]] == [["T-0"], ["ca-0"]]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], 'names="": nothing to compare'),
        (["nobody"], 'names="nobody": the experiment'),
        (["T-0", "--out=/proc/no"], 'out="/proc/no": cannot be written'),
        (["T-0", "--tracking.uri=files"], 'tracking.uri="files": not a database'),
    ],
)
def test_bad_input_is_one_line(
    storage: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], expected: str
) -> None:
    assert run_in_process("compare.py", [*arguments, f"--storage_path={storage}"]) == 2
    err = capsys.readouterr().err
    assert err.startswith(expected)
    assert err.count("\n") == 1
