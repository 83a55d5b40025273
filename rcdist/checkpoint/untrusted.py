"""Let a checkpoint of unknown origin in: as a copy of our own that is proved to hold data only."""

import contextlib
import copyreg
import enum
import hashlib
import importlib
import os
import pickle
import shutil
import stat
import struct
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch.serialization import get_unsafe_globals_in_checkpoint

from rcdist.checkpoint.find import Found
from rcdist.checkpoint.manifest import MANIFEST, ZERO_FOLDER, rank_list_name
from rcdist.errors import CheckpointError

_EXPECTED = {
    "deepspeed.runtime.fp16.loss_scaler.LossScaler",
    "deepspeed.runtime.zero.config.ZeroStageEnum",
    "deepspeed.utils.tensor_fragment.fragment_address",
}
"""Classes whose instances DeepSpeed puts into its files; making one runs nothing else."""


def expected_classes() -> list[Any]:
    """Import the classes that DeepSpeed's files may hold instances of, for torch's restricted unpickler."""
    os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")  # or it looks, and says so
    return [getattr(importlib.import_module(name.rpartition(".")[0]), name.rpartition(".")[2]) for name in _EXPECTED]


def pickle_enums_by_value() -> None:
    """Let this process pickle a member of DeepSpeed's Enum as its class and value, as most versions of Python do.

    The first releases of Python 3.11, Debian 12's among them, pickle it as a call of getattr, which is refused.
    """
    for found in expected_classes():
        if issubclass(found, enum.Enum):
            copyreg.pickle(found, lambda member: (type(member), (member.value,)))


def refuse_code(folder: Path) -> None:
    """Disassemble what DeepSpeed would unpickle of a checkpoint, running nothing. Cost: the tensors are not read.

    Every name that a pickle may call must be one of those that torch's own restricted unpickler allows, or of
    _EXPECTED; opcodes that could name something in another way are refused as such.

    Raises:
        CheckpointError: a file names something else, or is not what torch.save writes.
    """
    for path in sorted((folder / ZERO_FOLDER).rglob("*")):
        if path.is_dir() and not path.is_symlink():
            continue
        try:
            unsafe = sorted(set(get_unsafe_globals_in_checkpoint(path)) - _EXPECTED)
            reason = f"names {', '.join(unsafe)}" if unsafe else None
        except (pickle.UnpicklingError, ValueError, RuntimeError, EOFError, struct.error, IndexError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        if reason is not None:
            raise CheckpointError(
                "checkpoint",
                path,
                f"holds more than tensors ({reason}), and would run it",
                "Use a checkpoint whose origin you know, as a run of the same name and storage",
            )


def admit(found: Found, parent: Path | None = None) -> Found:
    """Copy a proved checkpoint into a new folder that only this user can open, and refuse code in the copy.

    What is proved is what is loaded: nobody else can change the copy, and it holds the listed files and nothing more.

    Args:
        found: a checkpoint; it may change meanwhile, then it is refused.
        parent: where the copy goes; None: the machine's temporary folder.

    Returns:
        The copy; its folder's parent is to be deleted when it is not needed any more.

    Raises:
        CheckpointError: it is not what was proved, or holds code.
        OSError: there is no room.
    """
    home = Path(tempfile.mkdtemp(prefix="admitted-", dir=parent))
    try:
        folder = home / found.folder.name
        manifest = found.manifest
        lists = [MANIFEST, *(rank_list_name(rank) for rank in range(manifest.world_size))]
        for name in [*manifest.files, *lists]:
            expected = manifest.files.get(name)
            digest = _copy(found.folder / name, folder / name)
            if expected is not None and digest != expected["sha256"]:
                rule = f"file {name} has digest {digest}, it was {expected['sha256']} when it was proved"
                raise CheckpointError("checkpoint", found.folder, rule, "Use a checkpoint that nobody writes to")
        refuse_code(folder)
    except BaseException:
        shutil.rmtree(home, ignore_errors=True)
        raise
    return Found(folder, manifest, found.damaged)


@contextlib.contextmanager
def admitted(found: Found) -> Iterator[Found]:
    """Admit a checkpoint while open."""
    copy = admit(found)
    try:
        yield copy
    finally:
        shutil.rmtree(copy.folder.parent, ignore_errors=True)


def _copy(source: Path, target: Path) -> str:
    """Copy a plain file and return its SHA-256; follows no link, waits for no pipe."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        handle = os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        rule = f"file {source.name} cannot be read ({error.strerror})"
        raise CheckpointError("checkpoint", source, rule, "Use another checkpoint") from error
    digest = hashlib.sha256()
    with open(handle, "rb") as reader, target.open("wb") as writer:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise CheckpointError("checkpoint", source, "no plain file", "Use another checkpoint")
        while block := reader.read(2**20):
            digest.update(block)
            writer.write(block)
    return digest.hexdigest()
