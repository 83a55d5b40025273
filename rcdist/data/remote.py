"""Tokenised corpora and tokenizers in a bucket: made once, brought once to every node."""

from dataclasses import replace
from pathlib import Path

from rcdist.config import JobConfig
from rcdist.data.corpora import PreparedData

_PREFIX = "datasets"


def pull_cached(config: JobConfig, folder: Path) -> None:
    """Bring a folder of the cache, if the bucket has it and this node has not.

    Raises:
        OSError: the bucket does not answer, or has something else than its list says.
    """
    if config.bucket is not None and not folder.is_dir():
        config.bucket.pull_folder(f"{_PREFIX}/{folder.name}", folder)


def push_data(config: JobConfig, data: PreparedData) -> None:
    """Send what the driver has prepared, unless the bucket has it."""
    for folder in _folders(data):
        if config.bucket is not None and not config.bucket.has_folder(f"{_PREFIX}/{folder.name}"):
            config.bucket.push_folder(folder, f"{_PREFIX}/{folder.name}")


def pull_data(config: JobConfig, data: PreparedData) -> PreparedData:
    """Bring to this node what the driver has prepared, and return where it is here."""
    train, validation, tokenizer = (config.dataset_dir / folder.name for folder in _folders(data))
    for folder in (train, validation, tokenizer):
        pull_cached(config, folder)
    return replace(
        data,
        train=replace(data.train, path=str(train)),
        validation=replace(data.validation, path=str(validation)),
        tokenizer_dir=str(tokenizer),
    )


def _folders(data: PreparedData) -> tuple[Path, Path, Path]:
    return Path(data.train.path), Path(data.validation.path), Path(data.tokenizer_dir)
