"""Small files and lines survive kills, full disks and power cuts, or are as if they were not there."""

import os
from pathlib import Path

import pytest

from rcdist import storage
from rcdist.storage import LineFile, read_json, try_write, write_file


@pytest.fixture
def full(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Let fsync say that the disk is full while the list holds True."""
    is_full, fsync = [True], os.fsync

    def fail(handle: int) -> None:
        if is_full[0]:
            raise OSError(28, "No space left on device")
        fsync(handle)

    monkeypatch.setattr(storage.os, "fsync", fail)
    return is_full


def test_a_file_is_whole_synced_and_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []
    fsync = os.fsync
    monkeypatch.setattr(storage.os, "fsync", lambda fd: (synced.append(os.readlink(f"/proc/self/fd/{fd}")), fsync(fd)))
    write_file(tmp_path / "run.json", '{"a": 1}')
    assert read_json(tmp_path / "run.json") == {"a": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]
    assert synced[0].endswith(".part") and synced[1:] == [str(tmp_path)]


def test_a_full_disk_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, full: list[bool], caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "run.json"
    path.write_text('{"old": 1}')
    with pytest.raises(OSError, match="No space left"):
        write_file(path, "{}")
    assert not try_write(path, "{}") and not try_write(path, "{}")
    assert read_json(path) == {"old": 1} and list(tmp_path.iterdir()) == [path]
    assert caplog.text.count("run.json cannot be written: No space left on device") == 1
    full[0] = False
    assert try_write(path, "{}") and read_json(path) == {}


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff\x00", b"\x00" * 40])
def test_a_damaged_file_is_absent_and_said_once(
    tmp_path: Path, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    assert read_json(tmp_path / "x.json") == {} and caplog.text == ""
    (tmp_path / "x.json").write_bytes(content)
    assert read_json(tmp_path / "x.json") == read_json(tmp_path / "x.json") == {}
    assert caplog.text.count("is damaged and passed over") == 1


def test_lines_wait_for_room_in_their_order(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "events.jsonl"
    lines = LineFile(path)
    lines.append("1")
    path.rename(tmp_path / "kept")
    path.symlink_to("/dev/full")
    lines.append("2")
    lines.append("3")
    path.unlink()
    (tmp_path / "kept").rename(path)
    lines.flush()
    assert path.read_text() == "1\n2\n3\n"
    lines.append("4")
    assert path.read_text() == "1\n2\n3\n4\n" and "its lines wait in memory" in caplog.text


def test_half_a_line_is_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    for before in ("", "whole\n"):
        path.write_text(before + "x" * 100_000)
        LineFile(path).append("next")
        assert path.read_text() == f"{before}next\n"
