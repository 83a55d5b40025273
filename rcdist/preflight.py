"""Before anything is started: refuse what cannot work, and say what a run will take."""

import json
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rcdist.config import JobConfig
from rcdist.data.prepare import PreparedData
from rcdist.errors import BudgetError, CheckpointError, ConfigError
from rcdist.model.cost import ParameterCounts, estimate_flops
from rcdist.model.frozen import frozen_specs
from rcdist.model.reservoir import build_bank
from rcdist.tracking.prices import PriceRow
from rcdist.tracking.progress import format_count
from rcdist.train.checkpoint import (
    CONFIG,
    Manifest,
    find_checkpoints,
    find_newest_valid,
    read_manifest,
    verify_checkpoint,
)
from rcdist.train.deepspeed_config import build_deepspeed_config
from rcdist.train.foreign import refuse_code
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
    """Refuse raw DeepSpeed keys that rcdist owns, frozen matrices whose topology does not fit their shape, and storage
    that cannot be written; needs no Ray, data or device."""
    build_deepspeed_config(config, num_workers=1, num_trained=1)
    frozen_specs(config.model, config.reservoir)
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
            "storage_path",
            config.storage_path,
            f"cannot be written ({error.strerror})",
            "Choose a folder you may write",
        ) from error


@dataclass(frozen=True)
class Resume:
    """Hold the checkpoint that a run continues from."""

    folder: Path
    manifest: Manifest


def find_resume(config: JobConfig) -> Resume | None:
    """Return the checkpoint that this run continues from, None for a new run.

    Raises:
        ConfigError: the name has a checkpoint and `checkpoint.resume` is false.
        CheckpointError: the checkpoint belongs to another model or data order, or every checkpoint is damaged.
    """
    found = find_newest_valid(config.run_dir)
    if found is None:
        return _find_start(config)
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
    _check_budget(config, manifest)
    _check_same(config, folder, manifest)
    return Resume(folder, manifest)


def _find_start(config: JobConfig) -> Resume | None:
    """Return the checkpoint that a new run starts from: `checkpoint.resume_from`."""
    if config.checkpoint.resume_from is None:
        return None
    path = Path(config.checkpoint.resume_from).expanduser()
    if not path.is_dir():
        raise ConfigError(
            "checkpoint.resume_from", str(path), "there is no such folder", "Give a run's folder or a step-... folder"
        )
    if find_checkpoints(path):
        found = find_newest_valid(path)
        assert found is not None
        folder, manifest = found[0], read_manifest(found[0])
    else:
        folder, manifest = path, verify_checkpoint(path)
    refuse_code(folder)
    if manifest.step >= config.train.steps:
        raise ConfigError(
            "train.steps",
            config.train.steps,
            f"the checkpoint {folder.name} that the run starts from has {manifest.step} already",
            "Raise it",
        )
    _check_same(config, folder, manifest)
    return Resume(folder.resolve(), manifest)


def _check_budget(config: JobConfig, manifest: Manifest) -> None:
    """Refuse a run whose budget is used up.

    Raises:
        BudgetError: names the budget and what is used.
    """
    for name, used in (("budget_usd", "usd"), ("budget_device_s", "device_s")):
        allowed, spent = getattr(config.cost, name), manifest.ledger[used]
        if allowed is not None and spent >= allowed:
            raise BudgetError(
                f"cost.{name}",
                allowed,
                f"run {config.name!r} has used {spent:.6g} by step {manifest.step}",
                "Raise it to go on",
            )


def _check_same(config: JobConfig, folder: Path, manifest: Manifest) -> None:
    saved = json.loads((folder / CONFIG).read_text())
    wanted = config.model_dump(mode="json")
    for key in _FIXED_ON_RESUME:
        for path, old, new in _differences(key, _look_up(saved, key), _look_up(wanted, key)):
            if path == "reservoir.source":  # either way gives the same bytes
                continue
            digests = ""
            if path.startswith("reservoir."):
                digest = build_bank(config.model, config.reservoir).digest()
                digests = f", reservoir digest {manifest.reservoir['digest']} against {digest} now"
            raise CheckpointError(
                path,
                new,
                f"the checkpoint of run {config.name!r} at step {manifest.step} has {old}{digests}",
                "Use the checkpoint's value, or choose another name",
            )


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


def describe_run(
    config: JobConfig, workers: Workers, counts: ParameterCounts, data: PreparedData, price: PriceRow
) -> str:
    """Say what is about to run: sizes, FLOPs, memory of the model states, the least time and money.

    The least time is that at the stated peak of the devices; what a run reaches of it is perf/mfu.
    """
    flops = estimate_flops(
        config.model, config.reservoir, activation_checkpointing=config.train.activation_checkpointing
    )
    total = config.train.steps * flops.hardware * config.train.global_batch_tokens
    least_s = total / (price.peak_flops * workers.num_workers)
    kind = "GPU" if workers.use_gpu else "CPU"
    at_least = f"{workers.min_workers} to " if workers.min_workers else ""
    states_mib = _state_bytes(config, counts, workers) / 2**20
    return (
        f"{config.name}: plan {config.reservoir.plan}, {at_least}{workers.num_workers} {kind} workers, "
        f"ZeRO stage {config.train.zero_stage}, {config.train.precision}\n"
        f"parameters: {counts.stored:,} stored, {counts.trained:,} trained, {counts.frozen_unique:,} frozen "
        f"({counts.frozen:,} as applied)\n"
        f"FLOPs per token: {format_count(flops.train)} training, {format_count(flops.prefill)} inference\n"
        f"memory per worker: {states_mib:,.0f} MiB of weights, gradients and optimizer\n"
        f"data: {data.train.num_tokens:,} training tokens, {data.validation.num_tokens:,} held out, "
        f"{config.train.steps} steps of {config.train.global_batch_tokens:,} tokens\n"
        f"cost: {price.usd_per_device_hour:g} USD per device hour ({price.name}, {price.market}); at least "
        f"{least_s:,.0f} s and {least_s * workers.num_workers * price.usd_per_device_s:.2g} USD at peak speed"
    )


def _state_bytes(config: JobConfig, counts: ParameterCounts, workers: Workers) -> float:
    """Estimate one worker's model states in bytes: 16 per trained weight less what ZeRO partitions, 1 per frozen."""
    stage, share = config.train.zero_stage, 1 / workers.num_workers
    weight = gradient = 2.0 if config.train.precision == "bf16" else 4.0
    moments = 8.0 + (4.0 if config.train.precision == "bf16" or stage else 0.0)
    per_weight = (
        weight * (share if stage >= 3 else 1.0)
        + gradient * (share if stage >= 2 else 1.0)
        + moments * (share if stage >= 1 else 1.0)
    )
    return per_weight * counts.trained + counts.frozen_unique
