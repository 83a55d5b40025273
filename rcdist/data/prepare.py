"""Tokenise the corpora of a run into shards that are cached by content: large ones in parallel with Ray Data."""

import hashlib
import json
import logging
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from rcdist.config import JobConfig
from rcdist.data.corpora import PreparedData
from rcdist.data.remote import pull_cached, push_data
from rcdist.data.shards import CorpusInfo, ShardWriter, is_current, read_info, verify_shards
from rcdist.data.sources import Source, fingerprint, read_documents, resolve_source
from rcdist.data.tokenizer import Tokenizer, build_tokenizer, check_vocabulary, load_tokenizer, read_tokenizer
from rcdist.errors import DataError
from rcdist.storage import new_folder

FORMAT_VERSION = 2
"""Of how text becomes ids, apart from the settings and the tokenizer: raise it where the same text gives others."""
MAX_LOST = 0.01
"""Share of a corpus, in bytes, that a tokenizer may have no ids for: more, and its loss says little about the text."""
_PIECE_CHARS = 65_536
_BLANK = re.compile(r"(?<=\S)[ \n](?=\S)")
_CHUNK_CHARS = 64 * 1024 * 1024
_BLOCK_ROWS = 16
_LOCAL_CHARS = 16 * 1024 * 1024
"""Up to this much text is encoded in this process, in some seconds: Ray Data takes as long to start its own."""


def prepare_corpora(config: JobConfig, report: Callable[[str], None] = print) -> PreparedData:
    """Tokenise training and validation text, or find both in the cache.

    Needs an initialised Ray unless each corpus is cached or small.

    Raises:
        DataError: a corpus or tokenizer cannot be used.
        ConfigError: the tokenizer has more entries than the model.
    """
    train, validation = resolve_sources(config)
    train_fingerprint = fingerprint(train)
    folder, tokenizer = _prepare_tokenizer(config, train, train_fingerprint, report)
    train_info = _prepare_corpus(config, train, train_fingerprint, tokenizer, report)
    validation_info = _prepare_corpus(config, validation, fingerprint(validation), tokenizer, report)
    seq_len = config.data.seq_len
    for info, source in ((train_info, train), (validation_info, validation)):
        if info.num_tokens <= seq_len:
            raise DataError(
                source.field,
                info.num_tokens,
                f"the corpus has {info.num_tokens} tokens, a window needs data.seq_len + 1 = {seq_len + 1}",
                "Use more text or a smaller data.seq_len",
            )
    data = PreparedData(train_info, validation_info, str(folder), tokenizer.digest)
    push_data(config, data)
    return data


def resolve_sources(config: JobConfig) -> tuple[Source, Source]:
    """Find the training and the held-out text of a run; reads no text.

    Raises:
        DataError: a corpus is not there.
    """
    train = resolve_source(config.data.train, config.data, is_train=True)
    return train, resolve_source(config.data.validation, config.data, is_train=False)


def check_data_settings(config: JobConfig) -> None:
    """Refuse a corpus or a tokenizer.json that is not there, or has more ids than the model; reads no text.

    Raises:
        DataError: one of them cannot be used.
        ConfigError: the tokenizer has more ids than the model.
    """
    resolve_sources(config)
    if config.tokenizer.kind != "bpe":
        build_tokenizer(config.tokenizer, config.model.vocab_size, [])


def prepare_text(config: JobConfig, entries: list[str], tokenizer: Tokenizer) -> CorpusInfo:
    """Tokenise any held-out text with a given tokenizer, or find it in the cache."""
    source = resolve_source(entries, config.data, is_train=False)
    return _prepare_corpus(config, source, fingerprint(source), tokenizer, report=lambda _: None)


def _prepare_tokenizer(
    config: JobConfig, train: Source, train_fingerprint: str, report: Callable[[str], None]
) -> tuple[Path, Tokenizer]:
    settings = config.tokenizer
    parts: list[Any] = [FORMAT_VERSION, settings.kind]
    if settings.kind == "bpe":
        parts += [settings.vocab_size or config.model.vocab_size, settings.max_train_bytes, train_fingerprint]
    elif settings.kind == "file":
        path = Path(str(settings.path)).expanduser()
        parts.append(hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None)
    key = hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]
    folder = config.dataset_dir / f"tokenizer-{key}"
    if settings.kind == "file":
        _say_changes(read_tokenizer(path), report)
    pull_cached(config, folder)
    if not folder.is_dir():
        built = build_tokenizer(settings, config.model.vocab_size, read_documents(train))
        with _complete_folder(folder) as temporary:
            built.save(temporary)
    tokenizer = load_tokenizer(folder)
    check_vocabulary(tokenizer, config.model.vocab_size)
    unused = config.model.vocab_size - tokenizer.vocab_size
    if unused:
        report(
            f"model.vocab_size={config.model.vocab_size}: the tokenizer's highest id is {tokenizer.vocab_size - 1}, "
            f"{unused} rows of embedding and head are never used"
        )
    return folder, tokenizer


def _say_changes(tokenizer: Tokenizer, report: Callable[[str], None]) -> None:
    if tokenizer.changes:
        report(f"tokenizer.path: switched off, so that every byte of text is counted: {', '.join(tokenizer.changes)}")


def _prepare_corpus(
    config: JobConfig, source: Source, content: str, tokenizer: Tokenizer, report: Callable[[str], None]
) -> CorpusInfo:
    shard_tokens = config.data.shard_tokens
    parts = json.dumps([FORMAT_VERSION, content, tokenizer.digest, shard_tokens])
    digest = hashlib.sha256(parts.encode()).hexdigest()
    folder = config.dataset_dir / f"tokens-{digest[:16]}"
    pull_cached(config, folder)
    if not is_current(folder):
        shutil.rmtree(folder, ignore_errors=True)  # of an older format
        with _complete_folder(folder) as temporary:
            writer = ShardWriter(
                temporary,
                digest=digest,
                tokenizer_digest=tokenizer.digest,
                vocab_size=tokenizer.vocab_size,
                shard_tokens=shard_tokens,
            )
            _tokenise(source, tokenizer, writer, report)
            writer.finish()
        info = read_info(folder)
        report(f"{source.field}: tokenised {info.num_documents} documents into {info.num_tokens} tokens")
    elif config.data.verify_cache:
        verify_shards(folder)
    info = read_info(folder)
    _check_lost(info, source.field, report)
    return info


def _check_lost(info: CorpusInfo, field: str, report: Callable[[str], None]) -> None:
    """Say how much of the text the ids leave out, and refuse more than `MAX_LOST`.

    Raises:
        DataError: names both shares.
    """
    if not info.num_lost:
        return
    share = info.num_lost / (info.num_bytes + info.num_lost)
    if share > MAX_LOST:
        raise DataError(
            field,
            f"{share:.2%} lost",
            f"the tokenizer has no ids for {info.num_lost} bytes of the text, at most {MAX_LOST:.0%} may be lost",
            "Use a tokenizer with byte fallback, or one that was made for this text",
        )
    report(f"{field}: the tokenizer has no ids for {info.num_lost} bytes ({share:.2%}) of the text; they do not count")


@contextmanager
def _complete_folder(folder: Path) -> Iterator[Path]:
    """Give a temporary folder and move it to `folder` when it is complete; another process may have been faster."""
    try:
        with new_folder(folder) as temporary:
            yield temporary
    except OSError:
        if not folder.is_dir():
            raise


def _tokenise(source: Source, tokenizer: Tokenizer, writer: ShardWriter, report: Callable[[str], None]) -> None:
    """Encode all documents, chunk by chunk, in order."""
    chunk: list[tuple[bool, str]] = []
    size = done = 0
    for document in read_documents(source):
        pieces = split_document(document) if tokenizer.is_exact else [document]
        for i, piece in enumerate(pieces):
            chunk.append((i == 0, piece))
            size += len(piece)
            if size >= _CHUNK_CHARS:
                _encode_chunk(chunk, tokenizer, writer)
                done += size
                report(f"{source.field}: {done / 1e6:.0f} million characters are tokenised")
                chunk, size = [], 0
    if chunk:
        _encode_chunk(chunk, tokenizer, writer)


def split_document(text: str, piece_chars: int = _PIECE_CHARS) -> list[str]:
    """Cut a long document between words, so that its pieces can be encoded in parallel.

    The cut lies before a blank, or behind a newline, that stands alone between non-blanks: there a byte-level BPE
    splits the text anyway, so the ids are those of the whole. A document without blanks stays whole.
    """
    pieces, start = [], 0
    while len(text) - start > piece_chars:
        found = _BLANK.search(text, start + piece_chars)
        if found is None:
            break
        cut = found.start() if found.group() == " " else found.end()
        pieces.append(text[start:cut])
        start = cut
    pieces.append(text[start:])
    return pieces


def _encode_chunk(chunk: list[tuple[bool, str]], tokenizer: Tokenizer, writer: ShardWriter) -> None:
    if sum(len(piece) for _, piece in chunk) > _LOCAL_CHARS:
        _encode_with_ray(chunk, tokenizer, writer)
        return
    for (is_start, _), encoded in zip(chunk, tokenizer.encode_counted([piece for _, piece in chunk]), strict=True):
        if is_start:
            writer.start_document(tokenizer.eod_id)
        writer.add(np.asarray(encoded.ids, np.uint32), encoded.num_bytes, encoded.num_lost)


def _encode_with_ray(chunk: list[tuple[bool, str]], tokenizer: Tokenizer, writer: ShardWriter) -> None:
    import pyarrow as pa
    import ray.data

    logging.getLogger("ray.data").setLevel(logging.ERROR)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.execution_options.preserve_order = True
    context.execution_options.verbose_progress = False

    def encode(table: pa.Table) -> pa.Table:
        done = tokenizer.encode_counted(table["text"].to_pylist())
        columns = {
            "starts": table["starts"],
            "ids": pa.array([encoded.ids for encoded in done], pa.list_(pa.uint32())),
            "num_bytes": [encoded.num_bytes for encoded in done],
            "num_lost": [encoded.num_lost for encoded in done],
        }
        return pa.table(columns)

    starts, texts = zip(*chunk, strict=True)
    table = pa.table({"starts": starts, "text": texts})
    blocks = [table.slice(first, _BLOCK_ROWS) for first in range(0, table.num_rows, _BLOCK_ROWS)]
    encoded = ray.data.from_arrow(blocks).map_batches(encode, batch_format="pyarrow", batch_size=None)
    for batch in encoded.iter_batches(batch_format="pyarrow", batch_size=None):
        columns = (batch["starts"].to_pylist(), batch["num_bytes"].to_pylist(), batch["num_lost"].to_pylist())
        for is_start, num_bytes, num_lost, ids in zip(*columns, batch["ids"], strict=True):
            if is_start:
                writer.start_document(tokenizer.eod_id)
            writer.add(ids.values.to_numpy(), num_bytes, num_lost)
