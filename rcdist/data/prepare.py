"""Tokenise the corpora of a run into shards that are cached by content: large ones in parallel with Ray Data."""

import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rcdist.config import JobConfig
from rcdist.data.shards import CorpusInfo, ShardWriter, is_current, read_info, verify_shards
from rcdist.data.sources import Source, fingerprint, read_documents, resolve_source
from rcdist.data.tokenizer import Tokenizer, build_tokenizer, load_tokenizer
from rcdist.errors import DataError

FORMAT_VERSION = 1
_PIECE_CHARS = 65_536
_CHUNK_CHARS = 64 * 1024 * 1024
_BLOCK_ROWS = 16
_LOCAL_CHARS = 16 * 1024 * 1024
"""Up to this much text is encoded in this process, in some seconds: Ray Data takes as long to start its own."""


@dataclass(frozen=True)
class PreparedData:
    """Hold where the tokens of a run are.

    Attributes:
        train: training corpus.
        validation: held-out corpus.
        tokenizer_dir: folder of the tokenizer.
        tokenizer_digest: its digest.
    """

    train: CorpusInfo
    validation: CorpusInfo
    tokenizer_dir: str
    tokenizer_digest: str


def prepare_corpora(config: JobConfig, report: Callable[[str], None] = print) -> PreparedData:
    """Tokenise training and validation text, or find both in the cache.

    Needs an initialised Ray unless each corpus is cached or small.

    Raises:
        DataError: a corpus or tokenizer cannot be used.
        ConfigError: the tokenizer has more entries than the model.
    """
    train = resolve_source(config.data.train, config.data, is_train=True)
    validation = resolve_source(config.data.validation, config.data, is_train=False)
    train_fingerprint = fingerprint(train)
    folder, tokenizer = _prepare_tokenizer(config, train, train_fingerprint)
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
    return PreparedData(train_info, validation_info, str(folder), tokenizer.digest)


def prepare_text(config: JobConfig, entries: list[str], tokenizer: Tokenizer) -> CorpusInfo:
    """Tokenise any held-out text with a given tokenizer, or find it in the cache."""
    source = resolve_source(entries, config.data, is_train=False)
    return _prepare_corpus(config, source, fingerprint(source), tokenizer, report=lambda _: None)


def _prepare_tokenizer(config: JobConfig, train: Source, train_fingerprint: str) -> tuple[Path, Tokenizer]:
    settings = config.tokenizer
    parts: list[Any] = [FORMAT_VERSION, settings.kind]
    if settings.kind == "bpe":
        parts += [settings.vocab_size or config.model.vocab_size, settings.max_train_bytes, train_fingerprint]
    elif settings.kind == "file":
        path = Path(str(settings.path)).expanduser()
        parts.append(hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None)
    key = hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]
    folder = config.dataset_dir / f"tokenizer-{key}"
    if not folder.is_dir():
        built = build_tokenizer(settings, config.model.vocab_size, read_documents(train))
        with _complete_folder(folder) as temporary:
            built.save(temporary)
    tokenizer = load_tokenizer(folder)
    return folder, tokenizer


def _prepare_corpus(
    config: JobConfig, source: Source, content: str, tokenizer: Tokenizer, report: Callable[[str], None]
) -> CorpusInfo:
    shard_tokens = config.data.shard_tokens
    parts = json.dumps([FORMAT_VERSION, content, tokenizer.digest, shard_tokens])
    digest = hashlib.sha256(parts.encode()).hexdigest()
    folder = config.dataset_dir / f"tokens-{digest[:16]}"
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
            _tokenise(source, tokenizer, writer, can_split=config.tokenizer.kind != "file")
            writer.finish()
        info = read_info(folder)
        report(f"{source.field}: tokenised {info.num_documents} documents into {info.num_tokens} tokens")
    elif config.data.verify_cache:
        verify_shards(folder)
    return read_info(folder)


@contextmanager
def _complete_folder(folder: Path) -> Iterator[Path]:
    """Give a temporary folder and move it to `folder` when it is complete; another process may have been faster."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}-"))
    try:
        yield temporary
        os.chmod(temporary, 0o755)
        try:
            temporary.rename(folder)
        except OSError:
            if not folder.is_dir():
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _tokenise(source: Source, tokenizer: Tokenizer, writer: ShardWriter, *, can_split: bool) -> None:
    """Encode all documents, chunk by chunk, in order."""
    chunk: list[tuple[bool, str]] = []
    size = 0
    for document in read_documents(source):
        pieces = split_document(document) if can_split else [document]
        for i, piece in enumerate(pieces):
            chunk.append((i == 0, piece))
            size += len(piece)
            if size >= _CHUNK_CHARS:
                _encode_chunk(chunk, tokenizer, writer)
                chunk, size = [], 0
    if chunk:
        _encode_chunk(chunk, tokenizer, writer)


def split_document(text: str) -> list[str]:
    """Cut a long document between paragraphs, so that its pieces can be encoded in parallel.

    The cut lies between the two newlines of a paragraph break that a non-space follows: there a byte-level BPE splits
    the text anyway, so the ids are those of the whole.
    """
    pieces, start = [], 0
    while len(text) - start > _PIECE_CHARS:
        cut = text.find("\n\n", start + _PIECE_CHARS)
        while cut != -1 and text[cut + 2 : cut + 3].isspace():
            cut = text.find("\n\n", cut + 1)
        if cut == -1 or cut + 2 >= len(text):
            break
        pieces.append(text[start : cut + 1])
        start = cut + 1
    pieces.append(text[start:])
    return pieces


def _encode_chunk(chunk: list[tuple[bool, str]], tokenizer: Tokenizer, writer: ShardWriter) -> None:
    if sum(len(piece) for _, piece in chunk) > _LOCAL_CHARS:
        _encode_with_ray(chunk, tokenizer, writer)
        return
    for (is_start, piece), ids in zip(chunk, tokenizer.encode_batch([piece for _, piece in chunk]), strict=True):
        if is_start:
            writer.start_document(tokenizer.eod_id)
        writer.add(np.asarray(ids), len(piece.encode()))


def _encode_with_ray(chunk: list[tuple[bool, str]], tokenizer: Tokenizer, writer: ShardWriter) -> None:
    import pyarrow as pa
    import ray.data

    logging.getLogger("ray.data").setLevel(logging.ERROR)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.execution_options.preserve_order = True
    context.execution_options.verbose_progress = False

    def encode(table: pa.Table) -> pa.Table:
        ids = tokenizer.encode_batch(table["text"].to_pylist())
        return table.append_column("ids", pa.array(ids, pa.list_(pa.uint32()))).drop_columns(["text"])

    starts, texts = zip(*chunk, strict=True)
    table = pa.table(
        {"starts": starts, "text": texts, "num_bytes": np.array([len(text.encode()) for text in texts], np.int64)}
    )
    blocks = [table.slice(first, _BLOCK_ROWS) for first in range(0, table.num_rows, _BLOCK_ROWS)]
    encoded = ray.data.from_arrow(blocks).map_batches(encode, batch_format="pyarrow", batch_size=None)
    for batch in encoded.iter_batches(batch_format="pyarrow", batch_size=None):
        columns = (batch["starts"].to_pylist(), batch["num_bytes"].to_pylist(), batch["ids"])
        for is_start, num_bytes, ids in zip(*columns, strict=True):
            if is_start:
                writer.start_document(tokenizer.eod_id)
            writer.add(ids.values.to_numpy(), num_bytes)
