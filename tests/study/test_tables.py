"""Tables of a study: what is printed, and CSV that reads back to what MLflow had."""

import csv
from pathlib import Path

from rcdist.study.results import StudyResult
from rcdist.study.tables import format_tables, write_tables
from tests.study.small import QUALITIES


def test_the_table_names_arms_costs_and_differences(result: StudyResult) -> None:
    text = format_tables(result)
    assert "cpu: a processor" in text
    row = next(line for line in text.splitlines() if line.split()[:2] == ["U", "U@a"] and "[" in line)
    assert "-20.0% [-30.0%, -10.0%]" in row
    quality = [line for line in text.splitlines() if line.split()[:2] == ["U", "U@a"]][1]
    assert "+1.14% [-0.72, +3.00]" in quality


def test_csv_has_arms_runs_and_curves(result: StudyResult, tmp_path: Path) -> None:
    files = write_tables(result, tmp_path / "new")
    assert [file.name for file in files] == ["s.csv", "s-runs.csv", "s-curves.csv"]
    arms, runs, curves = (list(csv.DictReader(file.open())) for file in files)
    assert [row["arm"] for row in arms] == ["T", "U", "narrow"]
    assert [row["baseline"] for row in arms] == ["", "T", "U"]
    assert float(arms[1]["time/cpu/train/ratio"]) == 0.8
    assert {(row["arm"], int(row["seed"])): float(row["eval/bits_per_byte"]) for row in runs} == {
        (arm, seed): value for arm, found in QUALITIES.items() for seed, value in found.items()
    }
    assert len(curves) == 2 * len(runs)
    assert [float(row["eval/bits_per_byte"]) for row in curves[:2]] == [2.3, 2.0]
