"""The manifest: everything but the tensors comes back, also from the format before."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from rcdist.checkpoint.files import write_rank
from rcdist.checkpoint.find import checkpoint_name
from rcdist.checkpoint.manifest import MANIFEST, Manifest, read_manifest, write_manifest
from rcdist.checkpoint.state import LoopState, SpikeState
from rcdist.errors import CheckpointError
from rcdist.tracking.ledger import Ledger


def make_checkpoint(
    run_dir: Path,
    step: int,
    eval_loss_nats: float | None = None,
    world_size: int = 2,
    skipped: Sequence[int] = (),
    name: str | None = None,
) -> Path:
    """Leave a checkpoint as `world_size` workers do, without real tensors."""
    folder = run_dir / (name or checkpoint_name(step))
    folder.mkdir(parents=True)
    contents = [bytes(range(step % 200 + 1)), *[b"\0" * 10] * (world_size - 1)]
    for rank, content in enumerate(contents):
        write_rank(folder, rank, {f"zero/rank{rank}.pt": content})
    record = {"step": step, "timestamp_ms": step, "train/loss_nats": 1.0}
    if eval_loss_nats is not None:
        record["eval/loss_nats"] = eval_loss_nats
    manifest = Manifest(
        state=LoopState(
            step=step, skipped_steps=2, cursor=step * 16, spikes=SpikeState([4.5], [*skipped], 1), records=[record]
        ),
        world_size=world_size,
        zero_stage=2,
        ledger=Ledger(usd=1.5, device_s=60.0),
        mlflow_run_id="m",
        reservoir={"digest": "d" * 64},
        tokenizer_digest="t",
        data_digest="c",
    )
    write_manifest(folder, manifest)
    return folder


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    manifest = read_manifest(make_checkpoint(tmp_path, 30, eval_loss_nats=4.5))
    assert manifest.step == 30 and manifest.eval_loss_nats == 4.5
    assert manifest.state.spikes == SpikeState([4.5], [], 1) and manifest.state.cursor == 480
    assert manifest.ledger == Ledger(usd=1.5, device_s=60.0)
    assert set(manifest.files) == {"zero/rank0.pt", "zero/rank1.pt"}
    assert manifest.versions["deepspeed"] and manifest.versions["rcdist"]


def test_a_step_without_evaluation_has_no_held_out_loss(tmp_path: Path) -> None:
    assert read_manifest(make_checkpoint(tmp_path, 30)).eval_loss_nats is None


def test_the_format_before_is_read_to_the_same_manifest(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path, 30, eval_loss_nats=4.5)
    expected = read_manifest(folder)
    data = json.loads((folder / MANIFEST).read_text())
    old = {"format_version": 1, "eval_loss_nats": 4.5, **data.pop("state"), **data} | {"format_version": 1}
    (folder / MANIFEST).write_text(json.dumps(old))
    assert read_manifest(folder) == expected


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("{", "manifest.json cannot be read"),
        ("{}", "manifest.json cannot be read"),
        ('{"format_version": 99}', "format version 99, this rcdist reads versions 1 to 3"),
        ('{"format_version": 2, "state": {}}', "manifest.json cannot be read"),
    ],
)
def test_anything_else_is_one_clear_error(tmp_path: Path, text: str, rule: str) -> None:
    folder = make_checkpoint(tmp_path, 30)
    (folder / MANIFEST).write_text(text)
    with pytest.raises(CheckpointError, match=rule):
        read_manifest(folder)


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "zero/../../x", "", "a\\b"])
def test_a_name_outside_the_checkpoint_is_refused(tmp_path: Path, name: str) -> None:
    folder = make_checkpoint(tmp_path, 30)
    (folder / "files-00001.json").write_text(json.dumps({name: {"bytes": 1, "sha256": "0"}}))
    with pytest.raises(CheckpointError, match="is not a file of the checkpoint"):
        read_manifest(folder)


def test_a_list_of_files_that_lacks_is_named(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path, 30)
    (folder / "files-00001.json").unlink()
    with pytest.raises(CheckpointError, match=r"files-00001\.json cannot be read"):
        read_manifest(folder)
