"""Write one rank's share of a checkpoint into the storage, while training goes on, hashing every byte on its way."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, BinaryIO, cast

import torch
from torch.utils._pytree import tree_leaves, tree_map_only

from rcdist.checkpoint.manifest import rank_list_name, write_whole


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
    folder.mkdir(parents=True, exist_ok=True)  # without ZeRO other ranks than 0 have no file
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
    write_whole(folder / rank_list_name(rank), json.dumps(described, indent=1))


def to_host(value: Any) -> Any:
    """Copy every tensor of nested dicts, lists and tuples into host memory, without what else its storage has."""
    return tree_map_only(torch.Tensor, lambda tensor: tensor.detach().to("cpu", copy=True).contiguous(), value)


def count_bytes(value: Any) -> int:
    """Return the bytes of all tensors and bytes in nested dicts, lists and tuples."""
    leaves = tree_leaves(value)
    tensors = sum(leaf.numel() * leaf.element_size() for leaf in leaves if isinstance(leaf, torch.Tensor))
    return tensors + sum(len(leaf) for leaf in leaves if isinstance(leaf, bytes))
