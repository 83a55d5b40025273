"""A run has one owner: a lease in its folder, refused to others while its holder lives, taken over when it is dead."""

import contextlib
import json
import os
import platform
import secrets
import socket
import threading
import time
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil

from rcdist.errors import ConfigError, HeldError
from rcdist.storage import read_json, write_file

_BEAT_S = 1.0
"""Seconds between two heartbeats."""
_DEAD_AFTER_S = 10.0
"""Seconds without a heartbeat after which the holder on another machine is dead, by the clock of who waits."""
_CLOCK_S = 2.0
"""Seconds by which the start of a process may seem to move: it is reckoned from the machine's clock."""


class Lease:
    """Hold a run while open, so that no second job writes into its folder.

    The lease is a file, `lease-N.json`; who takes over makes the one with the next number, which only one can. A
    heartbeat is a new modification time: it needs no room on the disk, and who waits for it looks whether it changes,
    not what it says, so that clocks of two machines are never compared. A holder on the same machine is dead as soon as
    its process is; another one after 10 s without a heartbeat. Works on NFS: it asks for exclusive creation and for
    close-to-open consistency, not for locks.

    Args:
        run_dir: of the run; made if needed, and deleted again if nothing else has come into it.
        name: of the run, for messages.
    """

    def __init__(self, run_dir: Path, name: str) -> None:
        self._run_dir, self._name = run_dir, name
        self._path: Path | None = None
        self._released = threading.Event()
        self._is_lost = False
        self._made: list[Path] = []

    def __enter__(self) -> "Lease":
        self._made = [folder for folder in (self._run_dir, self._run_dir.parent) if not folder.exists()]
        self._run_dir.mkdir(parents=True, exist_ok=True)
        while self._path is None:
            newest = _newest(self._run_dir)
            if newest is not None:
                self._refuse_while_held(newest)
            number = _number(newest) + 1 if newest else 1
            self._path = _create(self._run_dir / f"lease-{number:06d}.json", describe_self())
        for path in self._run_dir.glob("lease-*.json"):
            if _number(path) < _number(self._path):
                path.unlink(missing_ok=True)
        threading.Thread(target=self._beat, daemon=True, name="lease").start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._released.set()
        if self._path is not None and not self.is_lost:
            with contextlib.suppress(OSError):
                self._path.unlink()
            with contextlib.suppress(OSError):
                for folder in self._made:
                    folder.rmdir()  # unless there is something in it

    @property
    def is_lost(self) -> bool:
        """Return whether another job has taken the run over, because this one stood still."""
        return self._is_lost

    def prove(self) -> None:
        """Raise a ConfigError if the lease is lost."""
        if self.is_lost:
            newest = _newest(self._run_dir)
            holder = read_json(newest) if newest else {}
            rule = f"this job stood still for {_DEAD_AFTER_S:g} s, and the run was taken over by {show_holder(holder)}"
            raise ConfigError("name", self._name, rule, "Leave the run to that job")

    def _beat(self) -> None:
        path = self._path
        assert path is not None
        while not self._released.wait(_BEAT_S):
            try:
                os.utime(path)
                self._is_lost = _newest(self._run_dir) != path
            except FileNotFoundError:
                self._is_lost = not self._released.is_set()
            except OSError:
                continue  # the storage does not answer now
            if self._is_lost:
                return

    def _refuse_while_held(self, path: Path) -> None:
        """Raise unless the holder is dead, or has let go meanwhile.

        Raises:
            HeldError: names the holder.
        """
        holder = read_json(path)
        state = holder_lives(holder)
        seen, waited_since = _modified(path), time.monotonic()
        while state is None and seen is not None and time.monotonic() - waited_since < _DEAD_AFTER_S:
            time.sleep(min(_BEAT_S, _DEAD_AFTER_S) / 4)
            now = _modified(path)
            state = True if now not in (seen, None) else None
            if now is None:
                return
        if state:
            remedy = "Stop that job or wait for it, or choose another name"
            raise HeldError("name", self._name, f"the run is held by {show_holder(holder)}", remedy)


def describe_self() -> dict[str, Any]:
    """Return what identifies this process to others, here and on other machines."""
    process = psutil.Process()
    return {
        "host": socket.gethostname(),
        "pid": process.pid,
        "started": datetime.now().astimezone().isoformat(timespec="seconds"),
        "machine": _machine(),
        "process_started": process.create_time(),
    }


def show_holder(holder: dict[str, Any]) -> str:
    """Name a holder in a message."""
    if not holder:
        return "another job, whose lease cannot be read"
    return f"process {holder.get('pid')} on {holder.get('host')}, started {holder.get('started')}"


def holder_lives(holder: dict[str, Any]) -> bool | None:
    """Return whether the holder's process lives, None where that cannot be seen from here: then its heartbeat says."""
    if holder.get("machine") != _machine():
        return None
    try:
        process = psutil.Process(holder["pid"])
        if process.status() == psutil.STATUS_ZOMBIE:
            return False
        # With another start it is most likely another process under a used number; its heartbeat says.
        return True if abs(process.create_time() - holder["process_started"]) < _CLOCK_S else None
    except psutil.NoSuchProcess:
        return False
    except psutil.Error:
        return None


def _machine() -> str:
    """Name this machine since it was started, and the container: only in there a process number means anything."""
    parts = [platform.node()]
    for read in (lambda: Path("/proc/sys/kernel/random/boot_id").read_text(), lambda: os.readlink("/proc/self/ns/pid")):
        with contextlib.suppress(OSError):
            parts.append(read().strip())
    return " ".join(parts)


def _create(path: Path, content: dict[str, Any]) -> Path | None:
    """Create a lease, whole; return None if somebody else has just created it."""
    draft = path.with_name(f".lease-{secrets.token_hex(4)}")
    write_file(draft, json.dumps(content))
    try:
        os.link(draft, path)
    except FileExistsError:
        return None
    except OSError:  # a file system without links
        try:
            with path.open("x") as file:
                file.write(json.dumps(content))
        except FileExistsError:
            return None
    finally:
        draft.unlink(missing_ok=True)
    return path


def _newest(run_dir: Path) -> Path | None:
    return max(run_dir.glob("lease-*.json"), key=_number, default=None)


def _number(path: Path) -> int:
    digits = path.stem.removeprefix("lease-")
    return int(digits) if digits.isdigit() else 0


def _modified(path: Path) -> int | None:
    """Return when a lease was modified, None if it is gone; opening it makes NFS ask its server."""
    try:
        with path.open("rb") as file:
            return os.fstat(file.fileno()).st_mtime_ns
    except FileNotFoundError:
        return None
