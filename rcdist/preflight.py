"""Refuse what cannot work before anything is started: settings, storage, and a checkpoint that belongs to another model."""

import json
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rcdist.config import JobConfig
from rcdist.data.prepare import PreparedData
from rcdist.errors import CheckpointError, ConfigError
from rcdist.train.checkpoint import CONFIG, Manifest, find_newest_valid, read_manifest
from rcdist.train.deepspeed_config import build_deepspeed_config
from rcdist.workers import Workers

_FIXED_ON_RESUME = (
    "model",
    "reservoir",
    "seed",
    "data.seq_len",
    "data.seed",
    "train.global_batch_tokens",
    "train.zero_stage",
    "train.precision",
)
"""Settings that must be those of the checkpoint: another model, or another order of the data, is another run."""



def check_config(config: JobConfig) -> None:
    """Refuse what can be refused without Ray, data or a device: raw DeepSpeed keys and storage that cannot be written."""
    build_deepspeed_config(config, num_workers=1, num_trained=1)
    storage = config.storage
    if "://" in config.storage_path:
        raise ConfigError(
            "storage_path", config.storage_path, "not a folder", "Use a local folder, or a mount that all nodes share"
        )
    try:
        storage.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=storage):
            pass
    except OSError as error:
        raise ConfigError(
            "storage_path", config.storage_path, f"cannot be written ({error.strerror})", "Choose a folder you may write"
        ) from error


@dataclass(frozen=True)
class Resume:
    """Hold the checkpoint that a run continues from."""

    folder: Path
    manifest: Manifest

    def check_workers(self, workers: Workers) -> None:
        """Refuse another number of workers than wrote the checkpoint.

        Raises:
            CheckpointError: names both numbers.
        """
        if workers.num_workers != self.manifest.world_size:
            raise CheckpointError(
                "cluster.num_workers",
                workers.num_workers,
                f"the checkpoint {self.folder.name} was written by {self.manifest.world_size} workers",
                f"Use cluster.num_workers={self.manifest.world_size}, or choose another name",
            )


def find_resume(config: JobConfig) -> Resume | None:
    """Return the checkpoint that this run continues from, None for a new run.

    Raises:
        ConfigError: the name has a checkpoint and `checkpoint.resume` is false.
        CheckpointError: the checkpoint belongs to another model or data order, or every checkpoint is damaged.
    """
    found = find_newest_valid(config.run_dir)
    if found is None:
        return None
    folder, damaged = found
    for damage in damaged:
        print(f"skipped: {damage}", file=sys.stderr, flush=True)
    manifest = read_manifest(folder)
    if not config.checkpoint.resume:
        raise ConfigError(
            "name",
            config.name,
            f"the run has a checkpoint at step {manifest.step} and checkpoint.resume=false",
            "Choose another name, or allow checkpoint.resume",
        )
    saved = json.loads((folder / CONFIG).read_text())
    wanted = config.model_dump(mode="json")
    for key in _FIXED_ON_RESUME:
        for path, old, new in _differences(key, _look_up(saved, key), _look_up(wanted, key)):
            raise CheckpointError(
                path,
                new,
                f"the checkpoint of run {config.name!r} at step {manifest.step} has {old}",
                "Use the checkpoint's value, or choose another name",
            )
    return Resume(folder, manifest)


def check_data(resume: Resume, data: PreparedData) -> None:
    """Refuse to continue on another tokenizer or other training text.

    Raises:
        CheckpointError: names both digests.
    """
    manifest = resume.manifest
    for what, old, new in (
        ("tokenizer", manifest.tokenizer_digest, data.tokenizer_digest),
        ("data.train", manifest.data_digest, data.train.digest),
    ):
        if old != new:
            raise CheckpointError(
                what,
                new,
                f"the checkpoint {resume.folder.name} was trained with digest {old}",
                "Use the same tokenizer and corpus, or choose another name",
            )


def _look_up(tree: dict[str, Any], dotted: str) -> Any:
    value: Any = tree
    for part in dotted.split("."):
        value = value[part]
    return value


def _differences(path: str, before: Any, now: Any) -> Iterator[tuple[str, Any, Any]]:
    if isinstance(before, dict) and isinstance(now, dict):
        for key in now:
            yield from _differences(f"{path}.{key}", before.get(key), now[key])
    elif before != now:
        yield path, before, now
