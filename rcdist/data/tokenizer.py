"""Text to token ids and back: bytes, a given tokenizer.json, or a byte-level BPE trained on the corpus."""

import hashlib
import json
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path

import tokenizers

from rcdist.config import TokenizerConfig
from rcdist.errors import ConfigError, DataError

END_OF_DOCUMENT = "<|endofdocument|>"
"""Token at every document's start in a BPE trained here."""

_BOUNDARY_TOKENS = (END_OF_DOCUMENT, "<|endoftext|>", "</s>", "<|end_of_text|>", "<eos>", "[SEP]")
_FILE, _BYTES_FILE = "tokenizer.json", "bytes.json"
_NUM_BYTES = 256


class Tokenizer:
    """Encode and decode text.

    Args:
        backend: a `tokenizers.Tokenizer`; None: UTF-8 bytes are the ids 0..255 and 256 is the document boundary.
    """

    def __init__(self, backend: tokenizers.Tokenizer | None) -> None:
        self._backend = backend
        self.eod_id = _NUM_BYTES if backend is None else _find_boundary(backend)
        self.vocab_size = _NUM_BYTES + 1 if backend is None else backend.get_vocab_size(with_added_tokens=True)

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        """Return the ids of each text, without document boundaries."""
        if self._backend is None:
            return [list(text.encode()) for text in texts]
        return [encoding.ids for encoding in self._backend.encode_batch_fast(texts, add_special_tokens=False)]

    def decode(self, ids: list[int]) -> str:
        """Return the text of ids; document boundaries are left out, bytes that are not UTF-8 become U+FFFD."""
        ids = [i for i in ids if i != self.eod_id]
        if self._backend is None:
            return bytes(ids).decode(errors="replace")
        text: str = self._backend.decode(ids, skip_special_tokens=True)
        return text

    @cached_property
    def digest(self) -> str:
        """Return a SHA-256 of everything that decides ids."""
        text = "bytes" if self._backend is None else self._backend.to_str()
        return hashlib.sha256(text.encode()).hexdigest()

    def save(self, folder: Path) -> None:
        """Write the tokenizer into a folder; `load_tokenizer` reads it."""
        folder.mkdir(parents=True, exist_ok=True)
        if self._backend is None:
            (folder / _BYTES_FILE).write_text(json.dumps({"kind": "bytes"}))
        else:
            self._backend.save(str(folder / _FILE))


def load_tokenizer(folder: Path) -> Tokenizer:
    """Read what `Tokenizer.save` wrote."""
    if (folder / _BYTES_FILE).exists():
        return Tokenizer(None)
    return Tokenizer(_read_backend(folder / _FILE))


def build_tokenizer(config: TokenizerConfig, vocab_size: int, documents: Iterable[str]) -> Tokenizer:
    """Build the tokenizer of a run.

    Args:
        config: which kind.
        vocab_size: rows of the model's embedding, the most that the tokenizer may have.
        documents: training corpus, read only by kind=bpe.

    Raises:
        DataError: the tokenizer.json is missing or cannot be read.
        ConfigError: it has more entries than the model.
    """
    if config.kind == "bytes":
        tokenizer = Tokenizer(None)
    elif config.kind == "file":
        assert config.path is not None
        tokenizer = Tokenizer(_read_backend(Path(config.path).expanduser()))
    else:
        tokenizer = train_bpe(documents, config.vocab_size or vocab_size, config.max_train_bytes)
    if tokenizer.vocab_size > vocab_size:
        raise ConfigError(
            "model.vocab_size",
            vocab_size,
            f"the tokenizer has {tokenizer.vocab_size} entries",
            f"Use model.vocab_size={tokenizer.vocab_size} or a smaller tokenizer",
        )
    return tokenizer


def train_bpe(documents: Iterable[str], vocab_size: int, max_train_bytes: int) -> Tokenizer:
    """Train a byte-level BPE (Sennrich et al. 2016, arXiv:1508.07909); deterministic.

    Args:
        documents: read from the start.
        vocab_size: entries wanted, the 256 bytes and the document boundary included; a small corpus gives fewer.
        max_train_bytes: text read, in bytes.
    """
    backend = tokenizers.Tokenizer(tokenizers.models.BPE())
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_DOCUMENT],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(_take_bytes(documents, max_train_bytes), trainer)
    return Tokenizer(backend)


def _take_bytes(documents: Iterable[str], max_bytes: int) -> Iterator[str]:
    taken = 0
    for text in documents:
        size = len(text.encode())
        if taken + size > max_bytes:
            yield text.encode()[: max_bytes - taken].decode(errors="ignore")
            return
        yield text
        taken += size


def _read_backend(path: Path) -> tokenizers.Tokenizer:
    if not path.is_file():
        raise DataError("tokenizer.path", str(path), "no such file", "Give a tokenizer.json")
    try:
        return tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises plain Exception
        raise DataError("tokenizer.path", str(path), f"not a tokenizer.json ({error})", "Give another file") from error


def _find_boundary(backend: tokenizers.Tokenizer) -> int:
    for token in _BOUNDARY_TOKENS:
        found = backend.token_to_id(token)
        if found is not None:
            return int(found)
    raise DataError(
        "tokenizer.path", None, f"the tokenizer has none of {' '.join(_BOUNDARY_TOKENS)}", "Add one as a special token"
    )
