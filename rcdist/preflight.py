"""Before anything is started: refuse what cannot work, and find the checkpoint that a run goes on from."""

import contextlib
import logging
import secrets
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rcdist.bucket import SCHEMES, Bucket
from rcdist.checkpoint.find import Found, find_at, find_newest_valid
from rcdist.checkpoint.manifest import Manifest, read_settings
from rcdist.checkpoint.untrusted import refuse_code
from rcdist.config import JobConfig
from rcdist.data.corpora import PreparedData
from rcdist.data.prepare import check_data_settings
from rcdist.errors import BudgetError, CheckpointError, ConfigError
from rcdist.model.reservoir import build_bank
from rcdist.model.specs import frozen_specs
from rcdist.train.deepspeed_config import check_raw_keys

logger = logging.getLogger("rcdist")

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


def check_settings(config: JobConfig) -> None:
    """Refuse raw DeepSpeed keys that rcdist owns or DeepSpeed refuses, frozen matrices whose topology does not fit
    their shape, and text or a tokenizer that is not there; needs no Ray or device, reads no text, writes nothing."""
    check_raw_keys(config)
    frozen_specs(config.architecture)
    check_data_settings(config)


def check_config(config: JobConfig) -> None:
    """Refuse settings that cannot be run, see `check_settings`, and storage that cannot be written."""
    check_settings(config)
    if "://" in config.storage_path and config.bucket is None:
        rule = f"neither a folder nor a bucket: {', '.join(f'{scheme}://' for scheme in SCHEMES)}"
        raise ConfigError("storage_path", config.storage_path, rule, "Use a folder that all nodes share, or a bucket")
    if config.bucket is not None and config.checkpoint.resume_from is not None:
        rule = f"a run with storage_path={config.storage_path} starts from a checkpoint in the bucket"
        remedy = f"Copy that run's step-... below {config.storage_path}/{config.run_prefix}, and leave this out"
        raise ConfigError("checkpoint.resume_from", config.checkpoint.resume_from, rule, remedy)
    with refusing_storage(config):
        config.storage.mkdir(parents=True, exist_ok=True)
        if config.bucket is not None:
            _prove_bucket(config.bucket)
        with tempfile.NamedTemporaryFile(dir=config.storage) as file:
            file.write(bytes(4096))  # a full disk lets an empty one be made
            file.flush()


def _prove_bucket(bucket: Bucket) -> None:
    """Write, read, list and delete an object; all four are needed, and rights are given one by one."""
    name = f".rcdist-{secrets.token_hex(4)}"
    bucket.write(f"{name}/probe", name)
    if bucket.read(f"{name}/probe") != name.encode() or bucket.list(name) != {"probe": len(name)}:
        raise OSError("what was written cannot be read and listed")
    bucket.delete(f"{name}/probe")


@contextlib.contextmanager
def refusing_storage(config: JobConfig) -> Iterator[None]:
    """Turn what the operating system says of the storage into a ConfigError."""
    try:
        yield
    except OSError as error:
        reason = " ".join(str(error.strerror or error).split())
        rule, remedy = f"cannot be written ({reason})", "Make room, or choose a folder you may write"
        if config.bucket is not None:
            remedy = "Correct the bucket's name, credentials or rights (read, write, list, delete), or AWS_ENDPOINT_URL"
        raise ConfigError("storage_path", config.storage_path, rule, remedy) from error


def find_resume(config: JobConfig) -> Found | None:
    """Return the checkpoint that this run continues from, None for a new run.

    Raises:
        ConfigError: the name has a checkpoint and `checkpoint.resume` is false.
        CheckpointError: the checkpoint belongs to another model or data order, or every checkpoint is damaged.
    """
    found = find_newest_valid(config.run_dir)
    if found is None:
        return _find_start(config)
    for damage in found.damaged:
        logger.warning("skipped: %s", damage)
    if not config.checkpoint.resume:
        raise ConfigError(
            "name",
            config.name,
            f"the run has a checkpoint at step {found.manifest.step} and checkpoint.resume=false",
            "Choose another name, or allow checkpoint.resume",
        )
    _check_budget(config, found.manifest)
    _check_same(config, found)
    return found


def keep_version(config: JobConfig, found: Found | None) -> JobConfig:
    """Return the settings with the checkpoint's version of frozen matrices, unless they name another."""
    if found is None or "version" in config.reservoir.model_fields_set:
        return config
    version = read_settings(found.folder)["reservoir"]["version"]
    return config.model_copy(update={"reservoir": config.reservoir.model_copy(update={"version": version})})


def _find_start(config: JobConfig) -> Found | None:
    """Return the checkpoint that a new run starts from: `checkpoint.resume_from`."""
    if config.checkpoint.resume_from is None:
        return None
    path = Path(config.checkpoint.resume_from).expanduser().resolve()
    if not path.is_dir():
        raise ConfigError(
            "checkpoint.resume_from", str(path), "there is no such folder", "Give a run's folder or a step-... folder"
        )
    found = find_at(path)
    refuse_code(found.folder)
    if found.manifest.step >= config.train.steps:
        raise ConfigError(
            "train.steps",
            config.train.steps,
            f"the checkpoint {found.folder.name} that the run starts from has {found.manifest.step} already",
            "Raise it",
        )
    _check_same(config, found)
    return found


def _check_budget(config: JobConfig, manifest: Manifest) -> None:
    """Refuse a run whose budget is used up.

    Raises:
        BudgetError: names the budget and what is used.
    """
    for name, spent in (("budget_usd", manifest.ledger.usd), ("budget_device_s", manifest.ledger.device_s)):
        allowed = getattr(config.cost, name)
        if allowed is not None and spent >= allowed:
            raise BudgetError(
                f"cost.{name}",
                allowed,
                f"run {config.name!r} has used {spent:.6g} by step {manifest.step}",
                "Raise it to go on",
            )


def _check_same(config: JobConfig, found: Found) -> None:
    saved = read_settings(found.folder)
    wanted = keep_version(config, found).model_dump(mode="json")
    for key in _FIXED_ON_RESUME:
        for path, old, new in _differences(key, _look_up(saved, key), _look_up(wanted, key)):
            if path == "reservoir.source":  # either way gives the same bytes
                continue
            digests = ""
            if path.startswith("reservoir."):
                digest = build_bank(config.architecture).digest()
                digests = f", reservoir digest {found.manifest.reservoir['digest']} against {digest} now"
            raise CheckpointError(
                path,
                new,
                f"the checkpoint of run {config.name!r} at step {found.manifest.step} has {old}{digests}",
                "Use the checkpoint's value, or choose another name",
            )


def check_data(found: Found, data: PreparedData) -> None:
    """Refuse to continue on another tokenizer or other training text.

    Raises:
        CheckpointError: names both digests.
    """
    for what, old, new in (
        ("tokenizer", found.manifest.tokenizer_digest, data.tokenizer_digest),
        ("data.train", found.manifest.data_digest, data.train.digest),
    ):
        if old != new:
            raise CheckpointError(
                what,
                new,
                f"the checkpoint {found.folder.name} was trained with digest {old}",
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
