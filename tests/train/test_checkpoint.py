"""Checkpoints on disk: what is valid, what is named when damaged, what retention keeps."""

import json
from pathlib import Path

import pytest

from rcdist.errors import CheckpointError
from rcdist.train.checkpoint import (
    MANIFEST,
    Manifest,
    checkpoint_name,
    find_checkpoints,
    find_newest_valid,
    prune_checkpoints,
    read_manifest,
    verify_checkpoint,
    write_manifest,
)
from rcdist.train.writer import write_rank


def make_checkpoint(run_dir: Path, step: int, eval_loss_nats: float | None = None) -> Path:
    folder = run_dir / checkpoint_name(step)
    write_rank(folder, 0, {"zero/rank0.pt": bytes(range(step % 200 + 1))})
    write_rank(folder, 1, {"zero/rank1.pt": b"\0" * 10})
    manifest = Manifest(
        step=step,
        world_size=2,
        zero_stage=2,
        cursor=step * 16,
        skipped_steps=0,
        ledger={},
        eval_loss_nats=eval_loss_nats,
        mlflow_run_id=None,
        reservoir={},
        tokenizer_digest="t",
        data_digest="d",
    )
    write_manifest(folder, manifest)
    return folder


def test_a_checkpoint_verifies_and_reads_back(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path, 30, eval_loss_nats=4.5)
    manifest = verify_checkpoint(folder)
    assert (manifest.step, manifest.cursor, manifest.eval_loss_nats) == (30, 480, 4.5)
    assert set(manifest.files) == {"zero/rank0.pt", "zero/rank1.pt"}
    assert manifest.versions["deepspeed"]


def test_a_flipped_bit_is_named_with_both_digests(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path, 30)
    path = folder / "zero" / "rank0.pt"
    expected = read_manifest(folder).files["zero/rank0.pt"]["sha256"]
    data = bytearray(path.read_bytes())
    data[5] ^= 1
    path.write_bytes(data)
    with pytest.raises(CheckpointError) as caught:
        verify_checkpoint(folder)
    assert "zero/rank0.pt" in str(caught.value) and expected in str(caught.value)


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
    assert found is not None
    folder, (error,) = found
    assert folder == older
    assert newest.name in str(error)


def test_only_damaged_checkpoints_is_an_error_and_none_at_all_is_not(tmp_path: Path) -> None:
    assert find_newest_valid(tmp_path) is None
    (make_checkpoint(tmp_path, 10) / MANIFEST).unlink()
    with pytest.raises(CheckpointError, match="all 1 checkpoints are damaged"):
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
