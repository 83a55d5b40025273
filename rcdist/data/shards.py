"""Token shards: memory-mapped .npy files of token ids, with an index of sizes, digests and document starts."""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rcdist.errors import DataError
from rcdist.storage import read_json

INDEX = "index.json"
_STARTS = "starts.npy"
_FORMAT = 3
"""Of the files; how text becomes ids is data.prepare's matter."""


@dataclass(frozen=True)
class CorpusInfo:
    """Describe a tokenised corpus; travels to the workers.

    Attributes:
        path: folder of the shards.
        digest: SHA-256 of the source's content, the tokenizer and how it was cut; the cache key.
        tokenizer_digest: of the tokenizer that wrote the ids.
        num_tokens: ids, one boundary per document included.
        num_documents: documents.
        num_bytes: UTF-8 bytes of their text, without those lost.
        num_lost: UTF-8 bytes of their text that the tokenizer has no ids for.
        max_id: the highest id, boundaries included.
    """

    path: str
    digest: str
    tokenizer_digest: str
    num_tokens: int
    num_documents: int
    num_bytes: int
    num_lost: int
    max_id: int


class ShardWriter:
    """Write documents into shards of at most `shard_tokens` ids below a folder.

    Args:
        folder: empty folder.
        digest: of the corpus.
        tokenizer_digest: of the tokenizer.
        vocab_size: above every id; decides between uint16 and uint32.
        shard_tokens: ids per file.
    """

    def __init__(self, folder: Path, *, digest: str, tokenizer_digest: str, vocab_size: int, shard_tokens: int) -> None:
        self._folder = folder
        self._digest, self._tokenizer_digest, self._vocab_size = digest, tokenizer_digest, vocab_size
        self._dtype = np.dtype("<u2" if vocab_size <= 2**16 else "<u4")
        self._shard_tokens = shard_tokens
        self._starts: list[int] = []
        self._shards: list[dict[str, Any]] = []
        self._num_tokens = self._num_bytes = self._num_lost = self._in_shard = 0
        self._max_id = -1
        self._parts: list[NDArray[Any]] = []

    def start_document(self, boundary_id: int) -> None:
        """Begin a document with its boundary id."""
        self._starts.append(self._num_tokens)
        self.add(np.array([boundary_id], np.uint32), num_bytes=0)

    def add(self, ids: NDArray[np.uint32], num_bytes: int, num_lost: int = 0) -> None:
        """Append ids to the current document.

        Args:
            ids: each in [0, vocab_size).
            num_bytes: of the text that they stand for.
            num_lost: of the text besides that they do not stand for.

        Raises:
            DataError: an id would not fit into the file, or into the model.
        """
        if ids.size:
            self._max_id = max(self._max_id, int(ids.max()))
            if self._max_id >= self._vocab_size:
                raise _too_large(self._folder, self._max_id, self._vocab_size)
        self._num_bytes += num_bytes
        self._num_lost += num_lost
        while ids.size:
            part, ids = np.split(ids, [self._shard_tokens - self._in_shard])
            self._parts.append(part.astype(self._dtype))
            self._in_shard += part.size
            self._num_tokens += part.size
            if self._in_shard == self._shard_tokens:
                self._write_shard()

    def _write_shard(self) -> None:
        if not self._parts:
            return
        path = self._folder / f"shard-{len(self._shards):05d}.npy"
        np.save(path, np.concatenate(self._parts))
        self._shards.append(_describe(path) | {"num_tokens": self._in_shard})
        self._parts, self._in_shard = [], 0

    def finish(self) -> None:
        """Close the last shard and write starts and index."""
        self._write_shard()
        np.save(self._folder / _STARTS, np.array(self._starts, np.int64))
        info = CorpusInfo(
            path="",
            digest=self._digest,
            tokenizer_digest=self._tokenizer_digest,
            num_tokens=self._num_tokens,
            num_documents=len(self._starts),
            num_bytes=self._num_bytes,
            num_lost=self._num_lost,
            max_id=self._max_id,
        )
        starts = _describe(self._folder / _STARTS)
        index = {"format": _FORMAT, "corpus": asdict(info), "starts": starts, "shards": self._shards}
        (self._folder / INDEX).write_text(json.dumps(index, indent=1))


def is_current(folder: Path) -> bool:
    """Say whether a folder holds shards as they are written now."""
    return read_json(folder / INDEX).get("format") == _FORMAT


def read_info(folder: Path) -> CorpusInfo:
    """Read the description of a tokenised corpus."""
    corpus = json.loads((folder / INDEX).read_text())["corpus"]
    return CorpusInfo(**corpus | {"path": str(folder)})


class TokenCorpus:
    """Read windows of a tokenised corpus through memory maps.

    Args:
        path: folder of the shards.
        vocab_size: of the model that is to read them.

    Raises:
        DataError: a file is missing or has another size than the index says, or an id is none of the model.
    """

    def __init__(self, path: str | Path, vocab_size: int) -> None:
        folder = Path(path)
        self.info = read_info(folder)
        if self.info.max_id >= vocab_size:
            raise _too_large(folder, self.info.max_id, vocab_size)
        for entry in _listed(folder):
            file = folder / entry["file"]
            size = file.stat().st_size if file.exists() else 0
            if size != entry["bytes"]:
                raise _damaged(file, f"has {size} bytes, its index says {entry['bytes']}")
        self._starts: NDArray[np.int64] = np.load(folder / _STARTS)
        shards = json.loads((folder / INDEX).read_text())["shards"]
        self._maps: list[NDArray[Any]] = [np.load(folder / shard["file"], mmap_mode="r") for shard in shards]
        self._offsets = np.cumsum([0] + [shard["num_tokens"] for shard in shards])

    @property
    def num_tokens(self) -> int:
        """Return all ids, document boundaries included."""
        return self.info.num_tokens

    @property
    def bytes_per_token(self) -> float:
        """Return bytes of text per target token; every id but the very first is a target once."""
        return self.info.num_bytes / (self.num_tokens - 1)

    def num_windows(self, seq_len: int) -> int:
        """Return how many whole windows of `seq_len` inputs and targets there are."""
        return (self.num_tokens - 1) // seq_len

    def tokens(self, start: int, stop: int) -> NDArray[np.int64]:
        """Return the ids [start, stop) as int64; may cross shards."""
        parts = []
        shard = int(np.searchsorted(self._offsets, start, side="right")) - 1
        while start < stop:
            end = min(stop, int(self._offsets[shard + 1]))
            base = int(self._offsets[shard])
            parts.append(self._maps[shard][start - base : end - base].astype(np.int64))
            start, shard = end, shard + 1
        return np.concatenate(parts) if parts else np.zeros(0, np.int64)

    def window(self, index: int, seq_len: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Return window `index`: ids [seq_len + 1] and, for its inputs, whether a document starts there [seq_len].

        The last window of a corpus may be shorter; then both are.
        """
        first = index * seq_len
        ids = self.tokens(first, min(first + seq_len + 1, self.num_tokens))
        starts = np.zeros(ids.size - 1, np.bool_)
        low, high = np.searchsorted(self._starts, [first, first + starts.size])
        starts[self._starts[low:high] - first] = True
        return ids, starts


def verify_shards(path: str | Path) -> None:
    """Prove every file against the digest in the index. Cost: one read of all files.

    Raises:
        DataError: names the file and both digests.
    """
    folder = Path(path)
    for entry in _listed(folder):
        file = folder / entry["file"]
        if not file.exists():
            raise _damaged(file, f"has 0 bytes, its index says {entry['bytes']}")
        digest = _describe(file)["sha256"]
        if digest != entry["sha256"]:
            raise _damaged(file, f"has digest {digest}, its index says {entry['sha256']}")


def _describe(path: Path) -> dict[str, Any]:
    """Return what the index says of a file. Cost: one read of it."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"file": path.name, "bytes": path.stat().st_size, "sha256": digest}


def _listed(folder: Path) -> list[dict[str, Any]]:
    index = json.loads((folder / INDEX).read_text())
    return [index["starts"], *index["shards"]]


def _too_large(folder: Path, max_id: int, vocab_size: int) -> DataError:
    rule = f"the tokens in {folder} go up to {max_id}"
    return DataError("model.vocab_size", vocab_size, rule, f"Use model.vocab_size={max_id + 1} or a smaller tokenizer")


def _damaged(file: Path, rule: str) -> DataError:
    return DataError("data.cache_dir", str(file), f"the token shard {rule}", f"Delete {file.parent}: it is made again")
