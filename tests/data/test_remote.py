"""Corpora in a real S3: made by the first node, brought by the others, the same bytes."""

from pathlib import Path

import pytest

from rcdist.data.prepare import prepare_corpora
from rcdist.data.remote import pull_data
from tests.jobs.run import small_config
from tests.s3_server import BUCKET, s3_server


def test_what_one_node_prepares_another_brings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = tmp_path / "text.txt"
    text.write_text("one two three four five six seven eight nine ten\n" * 400)
    config = small_config(Path("unused"), f"--data.train={text}", f"--data.validation={text}", "--tokenizer.kind=bytes")
    with s3_server():
        config = config.model_copy(update={"storage_path": f"s3://{BUCKET}/data"})
        monkeypatch.setenv("RCDIST_WORK_DIR", str(tmp_path / "one"))
        said: list[str] = []
        made = prepare_corpora(config, said.append)
        assert any("tokenised" in line for line in said)
        monkeypatch.setenv("RCDIST_WORK_DIR", str(tmp_path / "two"))
        brought = pull_data(config, made)
        for old, new in ((made.train.path, brought.train.path), (made.tokenizer_dir, brought.tokenizer_dir)):
            assert new.startswith(str(tmp_path / "two"))
            files = [path.relative_to(old) for path in Path(old).rglob("*") if path.is_file()]
            assert files and all((Path(old) / f).read_bytes() == (Path(new) / f).read_bytes() for f in files)
        monkeypatch.setenv("RCDIST_WORK_DIR", str(tmp_path / "three"))
        said.clear()
        assert prepare_corpora(config, said.append).train.digest == made.train.digest
        assert not any("tokenised" in line for line in said)
