"""Small files in a real S3: what one node writes another has, and an outage is said once and stops nothing."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from rcdist.bucket import Bucket
from rcdist.checkpoint.mirror import RunMirror
from tests.s3_server import BUCKET, s3_server


@pytest.fixture(scope="module")
def server() -> Iterator[None]:
    with s3_server():
        yield


def test_what_one_node_pushes_another_pulls(server: None, tmp_path: Path) -> None:
    bucket = Bucket(f"s3://{BUCKET}/x")
    one, two = (tmp_path / name for name in ("one", "two"))
    one.mkdir()
    two.mkdir()
    (one / "a").write_text("1")
    here, there = RunMirror(bucket, "runs/a", one), RunMirror(bucket, "runs/a", two)
    here.push(["a", "b"])
    (two / "b").write_text("old")
    there.pull(["a", "b"])
    assert (two / "a").read_text() == "1" and not (two / "b").exists()
    with here.pushing(["a"]):
        (one / "a").write_text("23")
    there.pull(["a"])
    assert (two / "a").read_text() == "23"
    (two / "a").write_text("mine")
    there.pull(["a"], if_newer=True)
    assert (two / "a").read_text() == "mine"
    os.utime(two / "a", (1, 1))
    there.pull(["a"], if_newer=True)
    assert (two / "a").read_text() == "23"
    here.create("asked")
    there.pull(["asked"])
    assert (two / "asked").read_bytes() == b""
    here.clear(["a"])
    there.pull(["a"])
    assert not (two / "a").exists()


def test_an_outage_is_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    bucket = Bucket(f"s3://{BUCKET}/y")
    (tmp_path / "a").write_text("1")
    mirror = RunMirror(bucket, "runs/a", tmp_path)
    with s3_server():
        mirror.push(["a"])
    with monkeypatch.context() as patch:
        patch.setattr(Bucket, "upload", lambda *_: (_ for _ in ()).throw(OSError("no answer")))
        for text in ("2", "3"):
            (tmp_path / "a").write_text(text * 2)
            mirror.push(["a"])
    assert caplog.text.count("cannot be reached") == 1


def test_a_folder_needs_no_mirror(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("1")
    mirror = RunMirror(None, "runs/a", tmp_path)
    with mirror.pushing(["a"]), mirror.pulling(["a"]):
        mirror.push(["a"])
        mirror.pull(["a", "b"])
        mirror.clear(["a"])
    assert (tmp_path / "a").read_text() == "1"
