"""Hub sets from a local copy in the hub's cache layout, offline: rows, columns, splits and revisions."""

import json
from pathlib import Path

import pytest

from rcdist.config import DataConfig
from rcdist.data.sources import fingerprint, read_documents, resolve_source
from rcdist.errors import DataError

MAIN, OTHER = "a" * 40, "b" * 40


@pytest.fixture
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fill a hub cache with two revisions of owner/name: main, and the tag v2."""
    from huggingface_hub import constants

    home = tmp_path / "hub" / "datasets--owner--name"
    for commit, reference, word in ((MAIN, "main", "old"), (OTHER, "v2", "new")):
        folder = home / "snapshots" / commit
        folder.mkdir(parents=True)
        for split in ("train", "validation"):
            rows = [{"text": f"{word} {split} {i}", "work": i // 2, "n": i} for i in range(4)]
            blob = home / "blobs" / f"{commit}-{split}"
            blob.parent.mkdir(exist_ok=True)
            blob.write_text("".join(json.dumps(row) + "\n" for row in rows))
            (folder / f"{split}.jsonl").symlink_to(blob)
        (home / "refs").mkdir(exist_ok=True)
        (home / "refs" / reference).write_text(commit)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "datasets")


def read(**settings: object) -> tuple[list[str], str]:
    source = resolve_source(["hub:owner/name"], DataConfig(**settings), is_train=True)
    return list(read_documents(source)), fingerprint(source)


@pytest.mark.usefixtures("_cache")
@pytest.mark.parametrize("streaming", [False, True])
def test_a_set_is_read_at_its_revision(streaming: bool) -> None:
    old, old_mark = read(streaming=streaming)
    assert old == [f"old train {i}" for i in range(4)]
    new, new_mark = read(streaming=streaming, hub_revision="v2", document_column="work")
    assert new == ["new train 0\n\nnew train 1", "new train 2\n\nnew train 3"]
    assert read(streaming=streaming, hub_revision=MAIN) == (old, old_mark)
    assert read(hub_revision="v2")[1] not in (old_mark, new_mark)
    assert read(streaming=streaming, train_split="validation")[0][0] == "old validation 0"


@pytest.mark.usefixtures("_cache")
@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"hub_revision": "v3"}, "does not have revision v3 of it"),
        ({"text_column": "words"}, "hub:owner/name has columns"),
        ({"text_column": "n"}, "holds int there in row 0, not text"),
        ({"train_split": "test"}, "cannot be read"),
    ],
    ids=str,
)
@pytest.mark.parametrize("streaming", [False, True])
def test_what_a_set_does_not_have_is_one_line(settings: dict[str, str], expected: str, streaming: bool) -> None:
    with pytest.raises(DataError, match=expected) as caught:
        read(streaming=streaming, **settings)
    assert "\n" not in str(caught.value)
