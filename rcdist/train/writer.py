"""Write one rank's share of a checkpoint into the storage, while training goes on, hashing every byte on its way."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, BinaryIO, cast

import torch

from rcdist.train.checkpoint import rank_list_name


class _Hashing:
    """Pass bytes on to a file and take their SHA-256: the file need not be read again, maybe over a network."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._digest = file, hashlib.sha256()

    def write(self, data: bytes) -> int:
        self._digest.update(data)
        self._file.write(data)
        return len(data)

    def flush(self) -> None:
        self._file.flush()

    def describe(self) -> dict[str, Any]:
        return {"sha256": self._digest.hexdigest(), "bytes": self._file.tell()}


def write_rank(folder: Path, rank: int, contents: Mapping[str, Any]) -> None:
    """Write files, and last the list of them that makes this rank's share complete.

    Args:
        folder: of the checkpoint; every rank writes into the same one.
        rank: of this worker.
        contents: by path inside the checkpoint: bytes as they are, anything else by torch.save.
    """
    described = {}
    for name, content in contents.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as raw:
            file = _Hashing(raw)
            if isinstance(content, bytes):
                file.write(content)
            else:
                torch.save(content, cast(IO[bytes], file))  # it asks for write alone
            described[name] = file.describe()
    (folder / rank_list_name(rank)).write_text(json.dumps(described, indent=1))


def to_host(value: Any) -> Any:
    """Copy everything that a state holds into host memory, tensors without what else their storage has."""
    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu", copy=True).contiguous()
    if isinstance(value, Mapping):
        return {key: to_host(item) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(to_host(item) for item in value)
    return value


def count_bytes(value: Any) -> int:
    """Return the bytes of all tensors and bytes in a state."""
    if isinstance(value, torch.Tensor):
        return value.numel() * value.element_size()
    if isinstance(value, bytes):
        return len(value)
    if isinstance(value, Mapping):
        return sum(map(count_bytes, value.values()))
    return sum(map(count_bytes, value)) if type(value) in (list, tuple) else 0
