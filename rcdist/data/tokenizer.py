"""Text to token ids and back: bytes, a given tokenizer.json, or a byte-level BPE trained on the corpus."""

import hashlib
import json
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from rcdist.config import TokenizerConfig
from rcdist.data.neutral import neutralise
from rcdist.errors import ConfigError, DataError

END_OF_DOCUMENT = "<|endofdocument|>"
"""Token at every document's start in a BPE trained here."""

_BOUNDARY_TOKENS = (END_OF_DOCUMENT, "<|endoftext|>", "</s>", "<|end_of_text|>", "<eos>", "[SEP]")
_FILE, _BYTES_FILE = "tokenizer.json", "bytes.json"
_NUM_BYTES = 256
_LONGEST_PRE_TOKEN = 256
"""Bytes; the time of training grows with the square of a pre-token: a line of DNA or base64 is one without blanks."""


@dataclass(frozen=True)
class Encoded:
    """Hold the ids of a text and how much of it they stand for.

    Attributes:
        ids: without a document boundary.
        num_bytes: UTF-8 bytes that the ids stand for.
        num_lost: bytes that they do not: of characters that the tokenizer does not know, or drops.
    """

    ids: list[int]
    num_bytes: int
    num_lost: int


class Tokenizer:
    """Encode and decode text. The text of a special token within a document is text like any other.

    Args:
        backend: a `tokenizers.Tokenizer` that shortens and lengthens nothing; None: UTF-8 bytes are the ids 0..255 and
            256 is the document boundary.
        changes: what was switched off in the file that it was read from.

    Attributes:
        eod_id: the document boundary.
        known_ids: every id that stands for something; there may be gaps.
        vocab_size: the highest of them + 1, the least rows that an embedding and a head must have.
        is_exact: every text comes back from its ids, and may be cut where `split_document` cuts.
    """

    def __init__(self, backend: tokenizers.Tokenizer | None, changes: tuple[str, ...] = ()) -> None:
        self._backend = backend
        self.changes = changes
        if backend is None:
            self.eod_id, self.is_exact = _NUM_BYTES, True
            self.known_ids = frozenset(range(_NUM_BYTES + 1))
        else:
            backend.encode_special_tokens = True
            self.eod_id = _find_boundary(backend)
            self.known_ids = frozenset(backend.get_vocab(True).values()) | set(backend.get_added_tokens_decoder())
            description = json.loads(backend.to_str())
            self.is_exact = _is_made_here(description)
            self._unknown_id = _find_unknown(backend, description["model"])
        self.vocab_size = max(self.known_ids) + 1

    def __reduce__(self) -> tuple[Any, ...]:
        return _unpickle, (None if self._backend is None else self._backend.to_str(), self.changes)

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        """Return the ids of each text, without document boundaries."""
        if self._backend is None:
            return [list(text.encode()) for text in texts]
        encodings = self._backend.encode_batch_fast(texts, add_special_tokens=False)
        # Where the boundary is an ordinary word too, that word is lost, and counted so: it must not end a document.
        return [[i for i in encoding.ids if i != self.eod_id] for encoding in encodings]

    def encode_counted(self, texts: list[str]) -> list[Encoded]:
        """Return the ids of each text with the bytes that they stand for.

        Cost: of `encode_batch`, and, for a tokenizer that is not known to be exact, of decoding the ids.
        """
        batch = self.encode_batch(texts)
        sizes = [len(text.encode()) for text in texts]
        losses = [0] * len(texts) if self.is_exact else self._losses(texts, batch)
        return [Encoded(ids, size - lost, lost) for ids, size, lost in zip(batch, sizes, losses, strict=True)]

    def _losses(self, texts: list[str], batch: list[list[int]]) -> list[int]:
        """Return the bytes of each text that its ids do not give back."""
        assert self._backend is not None
        known = [[i for i in ids if i != self._unknown_id] for ids in batch]
        decoded = self._backend.decode_batch(known, skip_special_tokens=True)
        return [0 if text == back else _count_lost(text, back) for text, back in zip(texts, decoded, strict=True)]

    def decode(self, ids: list[int]) -> str:
        """Return the text of known ids; document boundaries are left out, bytes that are not UTF-8 become U+FFFD."""
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

    def describe(self) -> tuple[dict[str, Any], str]:
        """Return a tokenizer.json that gives the same ids, and the text of the document boundary."""
        backend = _byte_backend() if self._backend is None else self._backend
        return json.loads(backend.to_str()), str(backend.id_to_token(self.eod_id))

    def save(self, folder: Path) -> None:
        """Write the tokenizer into a folder; `load_tokenizer` reads it."""
        folder.mkdir(parents=True, exist_ok=True)
        if self._backend is None:
            (folder / _BYTES_FILE).write_text(json.dumps({"kind": "bytes"}))
        else:
            self._backend.save(str(folder / _FILE))


def _byte_backend() -> tokenizers.Tokenizer:
    """Return a byte-level BPE without merges, whose ids are the bytes."""
    shown = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(_NUM_BYTES) if byte not in shown]
    # As byte-level tokenizers write bytes: those that are no visible character follow after the first 256.
    letters = {byte: chr(byte) for byte in shown} | {byte: chr(_NUM_BYTES + i) for i, byte in enumerate(hidden)}
    backend = tokenizers.Tokenizer(models.BPE({letters[byte]: byte for byte in range(_NUM_BYTES)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([END_OF_DOCUMENT])
    return backend


def _unpickle(text: str | None, changes: tuple[str, ...]) -> Tokenizer:
    return Tokenizer(None if text is None else tokenizers.Tokenizer.from_str(text), changes)


def load_tokenizer(folder: Path) -> Tokenizer:
    """Read what `Tokenizer.save` wrote.

    Raises:
        DataError: it is not there or damaged.
    """
    if (folder / _BYTES_FILE).exists():
        return Tokenizer(None)
    return _read_file(folder / _FILE, "tokenizer", "Delete its folder, or use another checkpoint")


def read_tokenizer(path: Path) -> Tokenizer:
    """Read a tokenizer.json from anywhere; what in it shortens or lengthens text is switched off, see `changes`.

    Raises:
        DataError: it cannot be used.
    """
    return _read_file(path, "tokenizer.path", "Give another tokenizer.json")


def build_tokenizer(config: TokenizerConfig, vocab_size: int, documents: Iterable[str]) -> Tokenizer:
    """Build the tokenizer of a run.

    Args:
        config: which kind.
        vocab_size: rows of the model's embedding.
        documents: training corpus, read only by kind=bpe.

    Raises:
        DataError: the tokenizer.json is missing or cannot be read.
        ConfigError: it has more ids than the model.
    """
    if config.kind == "bytes":
        tokenizer = Tokenizer(None)
    elif config.kind == "file":
        assert config.path is not None
        tokenizer = read_tokenizer(Path(config.path).expanduser())
    else:
        tokenizer = train_bpe(documents, config.vocab_size or vocab_size, config.max_train_bytes)
    check_vocabulary(tokenizer, vocab_size)
    return tokenizer


def check_vocabulary(tokenizer: Tokenizer, vocab_size: int) -> None:
    """Refuse a tokenizer with ids that the model has no row for.

    Raises:
        ConfigError: names both numbers.
    """
    if tokenizer.vocab_size > vocab_size:
        raise ConfigError(
            "model.vocab_size",
            vocab_size,
            f"the tokenizer's highest id is {tokenizer.vocab_size - 1}",
            f"Use model.vocab_size={tokenizer.vocab_size} or a smaller tokenizer",
        )


def train_bpe(documents: Iterable[str], vocab_size: int, max_train_bytes: int) -> Tokenizer:
    """Train a byte-level BPE (Sennrich et al. 2016, arXiv:1508.07909); deterministic, in time linear in the text.

    Args:
        documents: read from the start.
        vocab_size: entries wanted, the 256 bytes and the document boundary included; a small corpus gives fewer.
        max_train_bytes: text read, in bytes.
    """
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.ByteLevel(add_prefix_space=False), pre_tokenizers.FixedLength(_LONGEST_PRE_TOKEN)]
    )
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_DOCUMENT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=sys.stderr.isatty(),
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


def _read_file(path: Path, field: str, remedy: str) -> Tokenizer:
    if not path.is_file():
        raise DataError(field, str(path), "no such file", remedy)
    try:
        description, changes = neutralise(json.loads(path.read_text(encoding="utf-8")))
        return Tokenizer(tokenizers.Tokenizer.from_str(json.dumps(description)), changes)
    except (DataError, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # the library raises plain Exception, and panics, which are no Exception
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(field, str(path), f"not a tokenizer.json ({reason})", remedy) from error


def _find_boundary(backend: tokenizers.Tokenizer) -> int:
    for token in _BOUNDARY_TOKENS:
        found = backend.token_to_id(token)
        if found is not None:
            return int(found)
    raise DataError(
        "tokenizer.path", None, f"the tokenizer has none of {' '.join(_BOUNDARY_TOKENS)}", "Add one as a special token"
    )


def _find_unknown(backend: tokenizers.Tokenizer, model: dict[str, Any]) -> int | None:
    """Return the id that stands for what the tokenizer does not know."""
    if "unk_id" in model:  # of a Unigram
        return None if model["unk_id"] is None else int(model["unk_id"])
    token = model.get("unk_token")
    return None if token is None else backend.token_to_id(token)


def _is_made_here(description: dict[str, Any]) -> bool:
    """Say whether a tokenizer.json is one that `train_bpe` made: byte-level, and nothing besides."""
    steps = description["pre_tokenizer"] or {}
    kinds = [step.get("type") for step in steps.get("pretokenizers", [steps])]
    return (
        kinds in (["ByteLevel"], ["ByteLevel", "FixedLength"])
        and (description["decoder"] or {}).get("type") == "ByteLevel"
        and description["normalizer"] is None
        and [token["content"] for token in description["added_tokens"]] == [END_OF_DOCUMENT]
        and set(pre_tokenizers.ByteLevel.alphabet()) <= description["model"]["vocab"].keys()
    )


def _count_lost(text: str, back: str) -> int:
    """Count the UTF-8 bytes of the characters that `text` has more often than what came back of it."""
    return sum(count * len(character.encode()) for character, count in (Counter(text) - Counter(back)).items())
