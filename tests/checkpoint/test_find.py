"""Checkpoints on disk: which is valid, what is named when it is damaged, what is read once, what retention keeps."""

import json
from pathlib import Path

import pytest

from rcdist.checkpoint import find as module
from rcdist.checkpoint.find import (
    checkpoint_name,
    find_at,
    find_checkpoints,
    find_newest_valid,
    prove_checkpoint,
    prune_checkpoints,
)
from rcdist.checkpoint.manifest import MANIFEST, read_manifest
from rcdist.errors import CheckpointError
from tests.checkpoint.test_manifest import make_checkpoint


def test_a_flipped_bit_is_named_with_both_digests(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path, 30)
    path = folder / "zero" / "rank0.pt"
    expected = read_manifest(folder).files["zero/rank0.pt"]["sha256"]
    data = bytearray(path.read_bytes())
    data[5] ^= 1
    path.write_bytes(data)
    with pytest.raises(CheckpointError) as caught:
        prove_checkpoint(folder)
    assert "zero/rank0.pt" in str(caught.value) and expected in str(caught.value)


def test_what_was_proved_is_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_checkpoint(tmp_path, 10)
    first = find_newest_valid(tmp_path)
    monkeypatch.setattr(module, "prove_checkpoint", lambda folder: pytest.fail(f"{folder} is read again"))
    assert find_newest_valid(tmp_path, proved=first) == first


def test_a_path_is_a_checkpoint_or_a_run(tmp_path: Path) -> None:
    make_checkpoint(tmp_path, 10)
    newest = make_checkpoint(tmp_path, 20)
    renamed = newest.rename(tmp_path / "downloaded")
    assert find_at(renamed).folder == renamed
    assert find_at(tmp_path).manifest.step == 10
    for path, rule in ((tmp_path / "zero", "there is no such folder"), (renamed / "zero", "has no step-")):
        with pytest.raises(CheckpointError, match=rule):
            find_at(path)


@pytest.mark.parametrize("damage", ["truncate", "remove", "no manifest", "torn manifest", "newer format"])
def test_a_damaged_newest_checkpoint_is_passed_over_and_named(tmp_path: Path, damage: str) -> None:
    older, newest = make_checkpoint(tmp_path, 10), make_checkpoint(tmp_path, 20)
    shard, manifest = newest / "zero" / "rank1.pt", newest / MANIFEST
    if damage == "truncate":
        shard.write_bytes(b"\0" * 9)
    elif damage == "remove":
        shard.unlink()
    elif damage == "no manifest":
        manifest.unlink()
    elif damage == "torn manifest":
        manifest.write_text(manifest.read_text()[:50])
    else:
        manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"format_version": 99}))
    found = find_newest_valid(tmp_path)
    assert found is not None and found.folder == older
    (error,) = found.damaged
    assert newest.name in str(error)


def test_only_damaged_checkpoints_is_an_error_and_none_at_all_is_not(tmp_path: Path) -> None:
    assert find_newest_valid(tmp_path) is None
    (make_checkpoint(tmp_path, 10) / "zero" / "rank0.pt").write_bytes(b"?")
    with pytest.raises(CheckpointError, match="all 1 checkpoints are damaged"):
        find_newest_valid(tmp_path)


@pytest.mark.parametrize("lacks", [MANIFEST, "files-00001.json"])
def test_a_first_checkpoint_that_was_never_finished_is_none(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, lacks: str
) -> None:
    (make_checkpoint(tmp_path, 10) / lacks).unlink()
    assert find_newest_valid(tmp_path) is None
    assert f"{lacks} cannot be read" in caplog.text
    (make_checkpoint(tmp_path, 20) / "zero" / "rank0.pt").write_bytes(b"?")
    with pytest.raises(CheckpointError, match="all 2 checkpoints are damaged"):
        find_newest_valid(tmp_path)


def test_retention_keeps_the_newest_and_the_best(tmp_path: Path) -> None:
    for step, loss in [(10, 4.0), (20, 3.0), (30, 3.5), (40, None), (50, 3.6)]:
        make_checkpoint(tmp_path, step, loss)
    deleted = prune_checkpoints(tmp_path, keep_latest=2)
    assert {p.name for p in deleted} == {checkpoint_name(10), checkpoint_name(30)}
    assert [p.name for p in find_checkpoints(tmp_path)] == [checkpoint_name(s) for s in (50, 40, 20)]


def test_retention_leaves_other_folders_alone(tmp_path: Path) -> None:
    (tmp_path / "step-notes").mkdir()
    make_checkpoint(tmp_path, 10)
    make_checkpoint(tmp_path, 20)
    prune_checkpoints(tmp_path, keep_latest=1)
    assert (tmp_path / "step-notes").is_dir()
