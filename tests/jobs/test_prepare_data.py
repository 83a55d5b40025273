"""The data job: says what it made, and the second time finds it."""

from pathlib import Path

import pytest

from tests.jobs.run import run_in_process


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cpu")
def test_corpora_are_described_and_made_once(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    text = tmp_path / "a.txt"
    text.write_text("one two three\n\n" * 400)
    arguments = [f"--storage_path={tmp_path / 's'}", f"--data.train={text}", f"--data.validation={text}"]
    arguments += ["--tokenizer.kind=bytes"]
    assert run_in_process("prepare_data.py", arguments) == 0
    first = capsys.readouterr().out
    assert "train: 1 documents, 6000 bytes, 6001 tokens (1.00 bytes/token)" in first
    assert "data.train: tokenised" in first
    assert run_in_process("prepare_data.py", arguments) == 0
    second = capsys.readouterr().out
    assert "tokenised" not in second
    assert second.splitlines()[-2:] == first.splitlines()[-2:]


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cpu")
def test_a_missing_corpus_is_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code = run_in_process("prepare_data.py", [f"--storage_path={tmp_path}", "--data.train=/nowhere"])
    error = capsys.readouterr().err
    assert code == 2 and error.startswith('data.train="/nowhere": ') and error.count("\n") == 1
