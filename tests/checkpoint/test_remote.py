"""Checkpoints in a real S3: what is whole is brought, what is not is passed over, and what nobody needs goes."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from rcdist.bucket import Bucket
from rcdist.checkpoint.find import checkpoint_name, find_checkpoints, prove_checkpoint
from rcdist.checkpoint.manifest import MANIFEST, rank_list_name
from rcdist.checkpoint.remote import RemoteCheckpoints
from rcdist.errors import CheckpointError
from tests.checkpoint.test_manifest import make_checkpoint
from tests.s3_server import BUCKET, s3_server


@pytest.fixture(scope="module")
def server() -> Iterator[None]:
    with s3_server():
        yield


@pytest.fixture
def remote(server: None, tmp_path: Path) -> RemoteCheckpoints:
    return RemoteCheckpoints(Bucket(f"s3://{BUCKET}/{tmp_path.name}"), "runs/a", tmp_path / "here")


def pushed(remote: RemoteCheckpoints, tmp_path: Path, step: int, **more: object) -> str:
    """Send a checkpoint as the ranks do, and return its save."""
    shutil.rmtree(tmp_path / "elsewhere", ignore_errors=True)
    folder = make_checkpoint(tmp_path / "elsewhere", step, **more)  # type: ignore[arg-type]
    save = f"{checkpoint_name(step)}-{step:08x}"
    files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    remote.push(folder, save, [*(name for name in files if name != MANIFEST), MANIFEST])
    return save


def test_the_newest_is_brought_once_and_replaces_what_was_here(remote: RemoteCheckpoints, tmp_path: Path) -> None:
    assert remote.fetch_newest() is None
    pushed(remote, tmp_path, 10)
    newest = pushed(remote, tmp_path, 20)
    make_checkpoint(remote.run_dir, 30)  # of another life of this run, on this node only
    assert remote.fetch_newest() == newest
    (folder,) = find_checkpoints(remote.run_dir)
    assert folder.name == "step-00000020" and prove_checkpoint(folder).manifest.step == 20
    before = folder.stat().st_ino
    assert remote.fetch_newest() == newest and folder.stat().st_ino == before
    assert remote.fetch_newest(before=20) is not None
    assert [path.name for path in find_checkpoints(remote.run_dir)] == ["step-00000010"]


@pytest.mark.parametrize("lost", [MANIFEST, rank_list_name(1), "zero/rank1.pt"])
def test_what_was_never_complete_is_passed_over(remote: RemoteCheckpoints, tmp_path: Path, lost: str) -> None:
    whole, cut = pushed(remote, tmp_path, 10), pushed(remote, tmp_path, 20)
    remote.bucket.delete(f"{remote.prefix}/{cut}/{lost}")
    assert remote.fetch_newest() == whole
    remote.bucket.delete_all(f"{remote.prefix}/{whole}")
    assert remote.fetch_newest() is None and find_checkpoints(remote.run_dir) == []


@pytest.mark.parametrize("content", [b"short", b"\1" * 10], ids=["truncated", "changed"])
def test_a_damaged_object_is_named_and_the_one_before_is_used(
    remote: RemoteCheckpoints, tmp_path: Path, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    whole, damaged = pushed(remote, tmp_path, 10), pushed(remote, tmp_path, 20)
    remote.bucket.write(f"{remote.prefix}/{damaged}/zero/rank1.pt", content)
    assert remote.fetch_newest() == whole
    assert damaged in caplog.text and "file zero/rank1.pt has" in caplog.text
    assert remote.fetch_newest() == whole  # it stays so
    remote.bucket.delete_all(f"{remote.prefix}/{whole}")
    if content == b"short":
        with pytest.raises(CheckpointError, match="all 1 checkpoints are damaged"):
            remote.fetch_newest()


def test_foreign_objects_are_not_looked_at(remote: RemoteCheckpoints, tmp_path: Path) -> None:
    save = pushed(remote, tmp_path, 20)
    for name in ("step-lr/x", "step-00000099/manifest.json", "step-00000099-zzzzzzzz/manifest.json", "note.txt"):
        remote.bucket.write(f"{remote.prefix}/{name}", "{}")
    remote.bucket.write(f"{remote.prefix}/{save}/zero/evil.pt", "code")
    remote.bucket.write(f"{remote.prefix}/step-00000098-0000aaaa/{MANIFEST}", "[]")
    assert remote.fetch_newest() == save
    assert not (remote.run_dir / "step-00000020" / "zero" / "evil.pt").exists()


def test_a_list_cannot_lead_out_of_the_folder(remote: RemoteCheckpoints, tmp_path: Path) -> None:
    save = pushed(remote, tmp_path, 20)
    listed = '{"../../../out": {"bytes": 1, "sha256": "x"}}'
    remote.bucket.write(f"{remote.prefix}/{save}/{rank_list_name(0)}", listed)
    with pytest.raises(CheckpointError, match="is not a file of the checkpoint"):
        remote.fetch_newest()


def test_what_is_kept_is_what_a_folder_keeps(remote: RemoteCheckpoints, tmp_path: Path) -> None:
    saves = {
        step: pushed(remote, tmp_path, step, eval_loss_nats=4.0 if step == 20 else 5.0) for step in range(10, 70, 10)
    }
    cut = pushed(remote, tmp_path, 25)
    remote.bucket.delete(f"{remote.prefix}/{cut}/{rank_list_name(0)}")
    remote.bucket.delete(f"{remote.prefix}/{saves[60]}/{rank_list_name(0)}")  # is being written
    bare = pushed(remote, tmp_path, 35)
    remote.bucket.delete(f"{remote.prefix}/{bare}/{MANIFEST}")  # killed while it uploaded
    doomed = remote.prune(keep_latest=2, keep_every_steps=30, writing=saves[60])
    assert set(doomed) == {saves[10], cut, bare}  # 30 is a third step, 40 and 50 the newest, 20 the best
    assert set(remote.saves()) == {saves[step] for step in (20, 30, 40, 50, 60)}
    assert not remote.bucket.list(f"{remote.prefix}/{cut}")
