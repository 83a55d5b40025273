"""Write one rank's share of a checkpoint into the storage, while training goes on, hashing every byte on its way."""

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath
from typing import IO, Any, BinaryIO, cast

import torch
from torch.utils._pytree import tree_leaves, tree_map_only

from rcdist.checkpoint.manifest import rank_list_name
from rcdist.storage import sync_folder, write_file


class _Hashing:
    """Pass bytes on to a file and take their SHA-256: the file need not be read again, maybe over a network."""

    def __init__(self, file: BinaryIO, on_write: Callable[[], None]) -> None:
        self._file, self._digest, self._on_write = file, hashlib.sha256(), on_write

    def write(self, data: bytes) -> int:
        self._digest.update(data)
        self._file.write(data)
        self._on_write()
        return len(data)

    def flush(self) -> None:
        self._file.flush()

    def describe(self) -> dict[str, Any]:
        return {"sha256": self._digest.hexdigest(), "bytes": self._file.tell()}


def write_rank(
    folder: Path, rank: int, contents: Mapping[str, Any], on_write: Callable[[], None] = lambda: None
) -> None:
    """Write files, and last the list of them that makes this rank's share complete.

    Args:
        folder: that is being saved into; every rank writes into the same one.
        rank: of this worker.
        contents: by path inside the checkpoint: bytes as they are, anything else by torch.save.
        on_write: called after every piece of a file.

    Raises:
        OSError: something cannot be written, or the folder was taken away; there is no list then.
    """
    described = {}
    for name, content in contents.items():
        path = folder / name
        for parent in reversed(PurePosixPath(name).parents):
            if parent.name:  # not the folder itself: who sweeps may have taken it away
                (folder / parent).mkdir(exist_ok=True)
        with path.open("wb") as raw:
            file = _Hashing(raw, on_write)
            if isinstance(content, bytes):
                file.write(content)
            else:
                _save(content, file)
            raw.flush()
            os.fsync(raw.fileno())
            described[name] = file.describe()
        sync_folder(path.parent)
    write_file(folder / rank_list_name(rank), json.dumps(described, indent=1))


def _save(content: Any, file: _Hashing) -> None:
    """Call torch.save, which hides the operating system's error behind one of its own."""
    try:
        torch.save(content, cast(IO[bytes], file))  # it asks for write alone
    except RuntimeError as error:
        cause = error.__context__
        raise cause if isinstance(cause, OSError) else error from None


def to_host(value: Any) -> Any:
    """Copy every tensor of nested dicts, lists and tuples into host memory, without what else its storage has."""
    return tree_map_only(torch.Tensor, lambda tensor: tensor.detach().to("cpu", copy=True).contiguous(), value)


def count_bytes(value: Any) -> int:
    """Return the bytes of all tensors and bytes in nested dicts, lists and tuples."""
    leaves = tree_leaves(value)
    tensors = sum(leaf.numel() * leaf.element_size() for leaf in leaves if isinstance(leaf, torch.Tensor))
    return tensors + sum(len(leaf) for leaf in leaves if isinstance(leaf, bytes))
