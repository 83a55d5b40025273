"""Refuse what cannot work before anything is started: settings, storage, and a checkpoint that belongs to another model."""

import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rcdist.config import JobConfig
from rcdist.errors import CheckpointError, ConfigError
from rcdist.train.checkpoint import CONFIG, Manifest, find_newest_valid, read_manifest
from rcdist.train.deepspeed_config import build_deepspeed_config

_FIXED_ON_RESUME = ("model", "reservoir", "seed", "data.seq_len", "data.seed", "train.global_batch_tokens")
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


def find_resume(config: JobConfig) -> tuple[Path, Manifest] | None:
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
    wanted = json.loads(config.model_dump_json())
    for key in _FIXED_ON_RESUME:
        before, now = _look_up(saved, key), _look_up(wanted, key)
        for path, old, new in _differences(key, before, now):
            raise CheckpointError(
                path, new, f"the checkpoint of run {config.name!r} at step {manifest.step} has {old}",
                "Use the checkpoint's value, or choose another name",
            )
    return folder, manifest


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
