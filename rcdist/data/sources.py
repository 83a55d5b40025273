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
from rcdist.data.hub import HUB_PREFIX, HubSet, find_set, read_rows
from rcdist.data.readers import Row, read_jsonl, read_parquet, read_text
from rcdist.errors import DataError

_READERS = {".jsonl": read_jsonl, ".parquet": read_parquet}
SUFFIXES = (".txt", *_READERS)
_PARAGRAPH = "\n\n"


@dataclass(frozen=True)
class Source:
    """Hold one split of a corpus: local files in order, or one hub set.

    Attributes:
        field: the setting that named it, for messages.
        files: local files; empty for a hub set.
        hub: the hub set; None for files.
        split: of the hub set.
        data: how rows become documents.
    """

    field: str
    files: tuple[Path, ...]
    hub: HubSet | None
    split: str
    data: DataConfig


def resolve_source(entries: list[str], data: DataConfig, *, is_train: bool) -> Source:
    """Find the files behind `entries`, in the order given, those of a folder or glob sorted.

    An entry that exists is itself, whatever characters its name has; any other is a glob. Hidden files and folders
    within a folder are passed over.

    Raises:
        DataError: nothing is there, an extension is unknown, a file is none, or a hub set is mixed with others.
    """
    field = "data.train" if is_train else "data.validation"
    split = data.train_split if is_train else data.validation_split
    hubs = [entry for entry in entries if entry.startswith(HUB_PREFIX)]
    if hubs:
        if len(entries) > 1:
            raise DataError(field, entries, f"{hubs[0]} stands beside other entries", "Give a hub set alone")
        return Source(field, (), find_set(hubs[0].removeprefix(HUB_PREFIX), data.hub_revision, field), split, data)
    files = [file for entry in entries for file in _find_files(entry, field, is_train)]
    if not files:
        raise DataError(field, entries, "no corpus is named", f"Name files, folders or {DEFAULT_CORPUS}")
    return Source(field, tuple(files), None, split, data)


def _find_files(entry: str, field: str, is_train: bool) -> list[Path]:
    if entry == DEFAULT_CORPUS:
        folder = Path(str(resources.files("rcdist.data"))) / "corpus" / DEFAULT_CORPUS
        return sorted((folder / ("train" if is_train else "validation")).glob("*.txt"))
    path = Path(entry).expanduser()
    try:
        if path.is_dir():
            return _list_folder(path, field)
        if path.exists() or path.is_symlink():
            files = [path]
        else:
            files = sorted(Path(name) for name in glob.iglob(str(path), recursive=True) if not Path(name).is_dir())
    except OSError as error:
        raise DataError(field, entry, f"cannot be read ({error.strerror})", "Check the path") from error
    if not files:
        raise DataError(
            field, entry, "no such file, folder or match", "Check the path, or use austen or hub:owner/name"
        )
    for file in files:
        if _suffix(file) not in SUFFIXES:
            raise DataError(
                field, str(file), f"extension {file.suffix!r} is none of {' '.join(SUFFIXES)}", "Convert it"
            )
        _check_file(file, field)
    return files


def _suffix(path: Path) -> str:
    """Return the ending that says what a file is; in capitals, as some systems write it, it says the same."""
    return path.suffix.lower()


def _list_folder(folder: Path, field: str) -> list[Path]:
    """List the corpus files below a folder; what is hidden (`._x.txt`, `.ipynb_checkpoints`) is nobody's corpus."""
    found = [path for path in folder.rglob("*") if _suffix(path) in SUFFIXES and not path.is_dir()]
    files = sorted(path for path in found if not any(part[0] == "." for part in path.relative_to(folder).parts))
    if not files:
        raise DataError(field, str(folder), f"the folder has no {' '.join(SUFFIXES)} file", "Name another folder")
    for file in files:
        _check_file(file, field)
    return files


def _check_file(path: Path, field: str) -> None:
    """Refuse a link to nothing, and what can be read once only, or without end: a pipe, a device."""
    if path.is_file():
        return
    rule = "no regular file" if path.exists() else "a link that leads to no file"
    raise DataError(field, str(path), rule, "Put a file there, or delete it")


def fingerprint(source: Source) -> str:
    """Return a SHA-256 of the content and of all that decides how it becomes documents. Cost: one read of the files.

    Names count only as far as they decide how a file is read: by its suffix.
    """
    data = source.data
    digest = hashlib.sha256()
    how: list[Any] = [data.text_column, data.document_column, data.max_documents]
    how.append([_suffix(path) for path in source.files])
    if source.hub:
        how += [source.hub.name, source.hub.commit, data.hub_config, source.split]
    digest.update(json.dumps(how).encode())
    for path in source.files:
        try:
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        except OSError as error:
            raise DataError(source.field, str(path), f"cannot be read ({error.strerror})", "Check that file") from error
    return digest.hexdigest()


def read_documents(source: Source) -> Iterator[str]:
    """Yield the documents of a source in order; empty ones are left out.

    Raises:
        DataError: a file is not UTF-8, the text column is missing or holds none, a hub set cannot be reached, or there
            is no text.
    """
    count = 0
    for text in islice((text for text in _all_documents(source) if text), source.data.max_documents):
        try:
            text.encode()
        except UnicodeEncodeError as error:  # JSON can write half of a character: "\ud800"
            rule = f"document {count + 1} has half of a UTF-16 pair at character {error.start}"
            raise DataError(source.field, _describe(source), rule, "Correct that document") from error
        count += 1
        yield text
    if count == 0:
        raise DataError(source.field, _describe(source), "the corpus has 0 bytes of text", "Name a corpus with text")


def _describe(source: Source) -> str:
    if source.hub:
        return f"{HUB_PREFIX}{source.hub.name}"
    more = f" and {len(source.files) - 3} more" if len(source.files) > 3 else ""
    return ", ".join(str(file) for file in source.files[:3]) + more


def _all_documents(source: Source) -> Iterator[str]:
    data = source.data
    if source.hub:
        yield from _join_rows(read_rows(source.hub, source.split, data, source.field), data)
        return
    for path in source.files:
        if _suffix(path) == ".txt":
            yield read_text(path, source.field)
        else:
            rows = _READERS[_suffix(path)](path, source.field, data.text_column, data.document_column)
            yield from _join_rows(rows, data)


def _join_rows(rows: Iterable[Row], data: DataConfig) -> Iterator[str]:
    """Yield the text of each row, or of each run of rows that belong to one work."""
    if data.document_column is None:
        yield from (text for text, _ in rows)
        return
    for _, group in groupby(rows, key=lambda row: row[1]):
        yield _PARAGRAPH.join(text for text, _ in group)
