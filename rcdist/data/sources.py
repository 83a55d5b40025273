"""Turn what `data.train` and `data.validation` name into documents: the shipped corpus, local files, or a hub set."""

import glob
import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib import resources
from itertools import groupby, islice
from pathlib import Path
from typing import Any

from rcdist.config import DEFAULT_CORPUS, DataConfig
from rcdist.errors import DataError

HUB_PREFIX = "hub:"
SUFFIXES = (".txt", ".jsonl", ".parquet")
_READERS = {".jsonl": "json", ".parquet": "parquet"}
_PARAGRAPH = "\n\n"


@dataclass(frozen=True)
class Source:
    """Hold one split of a corpus: local files in order, or one hub set.

    Attributes:
        field: the setting that named it, for messages.
        files: local files; empty for a hub set.
        hub_name: owner/name of the hub set; None for files.
        split: of the hub set.
        data: how rows become documents.
    """

    field: str
    files: tuple[Path, ...]
    hub_name: str | None
    split: str
    data: DataConfig


def resolve_source(entries: list[str], data: DataConfig, *, is_train: bool) -> Source:
    """Find the files behind `entries`, in the order given, those of a folder or glob sorted.

    Raises:
        DataError: nothing is there, an extension is unknown, or a hub set is mixed with others.
    """
    field = "data.train" if is_train else "data.validation"
    split = data.train_split if is_train else data.validation_split
    hubs = [entry for entry in entries if entry.startswith(HUB_PREFIX)]
    if hubs:
        if len(entries) > 1:
            raise DataError(field, entries, f"{hubs[0]} stands beside other entries", "Give a hub set alone")
        return Source(field, (), hubs[0].removeprefix(HUB_PREFIX), split, data)
    files = [file for entry in entries for file in _find_files(entry, field, is_train)]
    if not files:
        raise DataError(field, entries, "no corpus is named", f"Name files, folders or {DEFAULT_CORPUS}")
    return Source(field, tuple(files), None, split, data)


def _find_files(entry: str, field: str, is_train: bool) -> list[Path]:
    if entry == DEFAULT_CORPUS:
        folder = Path(str(resources.files("rcdist.data"))) / "corpus" / DEFAULT_CORPUS
        return sorted((folder / ("train" if is_train else "validation")).glob("*.txt"))
    path = Path(entry).expanduser()
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.suffix in SUFFIXES)
        if not files:
            raise DataError(field, entry, f"the folder has no {' '.join(SUFFIXES)} file", "Name another folder")
        return files
    files = [path] if path.is_file() else sorted(Path(name) for name in glob.glob(str(path), recursive=True))
    if not files:
        raise DataError(
            field, entry, "no such file, folder or match", "Check the path, or use austen or hub:owner/name"
        )
    for file in files:
        if file.suffix not in SUFFIXES:
            raise DataError(
                field, str(file), f"extension {file.suffix!r} is none of {' '.join(SUFFIXES)}", "Convert it"
            )
    return files


def fingerprint(source: Source) -> str:
    """Return a SHA-256 of the content and of how it becomes documents. Cost: one read of the files."""
    data = source.data
    digest = hashlib.sha256()
    how: list[Any] = [data.text_column, data.document_column, data.max_documents]
    if source.hub_name:
        how += [source.hub_name, data.hub_config, source.split]
    digest.update(json.dumps(how).encode())
    for path in source.files:
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def read_documents(source: Source) -> Iterator[str]:
    """Yield the documents of a source in order; empty ones are left out.

    Raises:
        DataError: a file is not UTF-8, the text column is missing, a hub set cannot be reached, or there is no text.
    """
    documents = _read_hub(source) if source.hub_name else _read_files(source)
    count = 0
    for text in islice((text for text in documents if text), source.data.max_documents):
        count += 1
        yield text
    if count == 0:
        named = source.hub_name or ", ".join(str(file) for file in source.files)
        raise DataError(source.field, named, "the corpus has 0 bytes of text", "Name a corpus with text")


def _read_files(source: Source) -> Iterator[str]:
    for path in source.files:
        if path.suffix == ".txt":
            yield _read_text(path, source.field)
        else:
            yield from _read_rows(path, source)


def _read_text(path: Path, field: str) -> str:
    try:
        return path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            field, str(path), f"not UTF-8 at byte {error.start} ({error.reason})", "Convert it: iconv -t UTF-8"
        ) from error


def _read_rows(path: Path, source: Source) -> Iterator[str]:
    import datasets

    datasets.disable_progress_bars()
    try:
        rows = datasets.load_dataset(_READERS[path.suffix], data_files=str(path), split="train", streaming=True)
        yield from _join_rows(rows, source, str(path))
    except (UnicodeDecodeError, ValueError, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(source.field, str(path), f"cannot be read ({reason})", "Check that file") from error


def _read_hub(source: Source) -> Iterator[str]:
    import datasets

    datasets.disable_progress_bars()
    data = source.data
    try:
        rows = datasets.load_dataset(source.hub_name, data.hub_config, split=source.split, streaming=data.streaming)
        yield from _join_rows(rows, source, str(source.hub_name))
    except (ConnectionError, FileNotFoundError, OSError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(
            source.field,
            f"{HUB_PREFIX}{source.hub_name}",
            f"the set cannot be read ({reason})",
            "Check the name, the split and the network, or use local files",
        ) from error


def _join_rows(rows: Iterable[dict[str, Any]], source: Source, name: str) -> Iterator[str]:
    text_column, document_column = source.data.text_column, source.data.document_column

    def column(row: dict[str, Any], wanted: str, setting: str) -> Any:
        if wanted not in row:
            raise DataError(setting, wanted, f"{name} has columns {' '.join(row)}", f"Set {setting} to one of them")
        return row[wanted]

    if document_column is None:
        for row in rows:
            yield column(row, text_column, "data.text_column") or ""
        return
    for _, group in groupby(rows, key=lambda row: column(row, document_column, "data.document_column")):
        yield _PARAGRAPH.join(column(row, text_column, "data.text_column") or "" for row in group)
