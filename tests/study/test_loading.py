"""A study's tables go into an empty MLflow, and come out of it as they were."""

from pathlib import Path

import pytest

from rcdist.errors import ConfigError
from rcdist.study.driver import plan_runs
from rcdist.study.loading import load_study
from rcdist.study.results import StudyResult, read_study
from rcdist.study.tables import format_tables, write_tables
from rcdist.study.worker import read_result
from tests.study.small import QUALITIES, small_study


def test_tables_that_are_loaded_are_the_same(result: StudyResult, tmp_path: Path) -> None:
    write_tables(result, tmp_path / "from")
    config = small_study(tmp_path / "store", texts={"sea": "x"}, blimp="y")
    said: list[str] = []
    for _ in range(2):
        load_study(config, tmp_path / "from", said.append)
    counts = [line.split(" of ")[0] for line in said]
    assert counts == [str(sum(map(len, QUALITIES.values()))), "0"]
    loaded = read_study(config)
    assert format_tables(loaded) == format_tables(result)
    write_tables(loaded, tmp_path / "to")
    for name in ("s.csv", "s-runs.csv", "s-curves.csv"):
        assert (tmp_path / "to" / name).read_text() == (tmp_path / "from" / name).read_text()
    done = [read_result(run.config) for run in plan_runs(config)]
    assert [found["metrics"]["eval/bits_per_byte"] for found in done if found] == [2.0, 2.02, 2.04]


def test_what_is_no_folder_of_tables_is_refused(tmp_path: Path) -> None:
    config = small_study(tmp_path / "store")
    with pytest.raises(ConfigError, match=r"s\.csv cannot be read \(No such file"):
        load_study(config, tmp_path, print)
    for name in ("s.csv", "s-runs.csv", "s-curves.csv"):
        (tmp_path / name).write_text("a,b\n1,2\n")
    with pytest.raises(ConfigError, match=r"s\.csv has no column arm"):
        load_study(config, tmp_path, print)
