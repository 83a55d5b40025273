"""Token shards: memory-mapped .npy files of token ids, with an index of sizes, digests and document starts."""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rcdist.errors import DataError

INDEX = "index.json"
_STARTS = "starts.npy"
_FORMAT = 2
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
        num_bytes: UTF-8 bytes of their text.
    """

    path: str
    digest: str
    tokenizer_digest: str
    num_tokens: int
    num_documents: int
    num_bytes: int


class ShardWriter:
    """Write documents into shards of at most `shard_tokens` ids below a folder.

    Args:
        folder: empty folder.
        digest: of the corpus.
        tokenizer_digest: of the tokenizer.
        vocab_size: decides between uint16 and uint32.
        shard_tokens: ids per file.
    """

    def __init__(self, folder: Path, *, digest: str, tokenizer_digest: str, vocab_size: int, shard_tokens: int) -> None:
        self._folder = folder
        self._digest, self._tokenizer_digest = digest, tokenizer_digest
        self._dtype = np.dtype("<u2" if vocab_size <= 2**16 else "<u4")
        self._shard_tokens = shard_tokens
        self._starts: list[int] = []
        self._shards: list[dict[str, Any]] = []
        self._num_tokens = self._num_bytes = self._in_shard = 0
        self._parts: list[NDArray[Any]] = []

    def start_document(self, boundary_id: int) -> None:
        """Begin a document with its boundary id."""
        self._starts.append(self._num_tokens)
        self.add(np.array([boundary_id], np.uint32), num_bytes=0)

    def add(self, ids: NDArray[np.uint32], num_bytes: int) -> None:
        """Append ids to the current document; they stand for `num_bytes` bytes of text."""
        self._num_bytes += num_bytes
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
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        entry = {"file": path.name, "num_tokens": self._in_shard, "bytes": path.stat().st_size, "sha256": digest}
        self._shards.append(entry)
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
        )
        index = {"format": _FORMAT, "corpus": asdict(info), "shards": self._shards}
        (self._folder / INDEX).write_text(json.dumps(index, indent=1))


def is_current(folder: Path) -> bool:
    """Say whether a folder holds shards as they are written now."""
    path = folder / INDEX
    return path.exists() and json.loads(path.read_text()).get("format") == _FORMAT


def read_info(folder: Path) -> CorpusInfo:
    """Read the description of a tokenised corpus."""
    corpus = json.loads((folder / INDEX).read_text())["corpus"]
    return CorpusInfo(**corpus | {"path": str(folder)})


class TokenCorpus:
    """Read windows of a tokenised corpus through memory maps.

    Args:
        path: folder of the shards.

    Raises:
        DataError: a shard is missing or has another size than its index says.
    """

    def __init__(self, path: str | Path) -> None:
        folder = Path(path)
        self.info = read_info(folder)
        self._starts: NDArray[np.int64] = np.load(folder / _STARTS)
        self._maps: list[NDArray[Any]] = []
        shards = json.loads((folder / INDEX).read_text())["shards"]
        for shard in shards:
            file = folder / shard["file"]
            size = file.stat().st_size if file.exists() else 0
            if size != shard["bytes"]:
                raise _damaged(file, f"has {size} bytes, its index says {shard['bytes']}")
            self._maps.append(np.load(file, mmap_mode="r"))
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
    """Prove every shard against the digest in the index. Cost: one read of all files.

    Raises:
        DataError: names the file and both digests.
    """
    folder = Path(path)
    shards: list[dict[str, Any]] = json.loads((folder / INDEX).read_text())["shards"]
    for shard in shards:
        with (folder / shard["file"]).open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if digest != shard["sha256"]:
            raise _damaged(folder / shard["file"], f"has digest {digest}, its index says {shard['sha256']}")


def _damaged(file: Path, rule: str) -> DataError:
    return DataError("data.cache_dir", str(file), f"the token shard {rule}", f"Delete {file.parent}: it is made again")
