"""The job of studies: its arguments, and tables of what MLflow has."""

from pathlib import Path

import pytest

from jobs import study
from rcdist.errors import ConfigError
from tests.study.small import record_study, small_study


def arguments(folder: Path) -> list[str]:
    """Return arguments that name the small study by a file of its settings."""
    from rcdist.config.cli import dump_config

    file = folder / "small.yaml"
    file.write_text(dump_config(small_study(folder)))
    return ["--config", str(file)]


def test_tables_are_printed_and_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record_study(small_study(tmp_path))
    assert study.main(["table", *arguments(tmp_path), "--out", str(tmp_path / "out")]) == 0
    text = capsys.readouterr().out
    assert "narrow" in text
    assert "s: quality" in text
    names = ["s.csv", "s-runs.csv", "s-curves.csv", "s-costs.png", "s-tokens.png"]
    assert text.splitlines()[-5:] == [str(tmp_path / "out" / name) for name in names]


def test_what_is_no_verb_and_no_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match='verb="draw": is none of train, time, load, table'):
        study.main(["draw"])
    with pytest.raises(ConfigError, match="needs a folder"):
        study.main(["table", *arguments(tmp_path), "--out"])
    record_study(small_study(tmp_path))
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r'out=".*file": cannot be written'):
        study.main(["table", *arguments(tmp_path), f"--out={tmp_path / 'file'}"])
