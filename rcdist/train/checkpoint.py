"""Write, find, verify and retire checkpoints: rank shards plus a manifest that lists every file with its digest."""

import hashlib
import json
import shutil
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import rcdist
from rcdist.errors import CheckpointError

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
CONFIG = "config.json"
TOKENIZER = "tokenizer"
_PREFIX = "step-"
_PACKAGES = ("ray", "torch", "deepspeed", "numpy")


@dataclass
class Manifest:
    """Hold everything about a checkpoint but its tensors.

    Attributes:
        step: optimizer steps done.
        world_size: workers that wrote it.
        zero_stage: DeepSpeed ZeRO stage that wrote it.
        cursor: global windows consumed, the state of the data loader.
        skipped_steps: steps whose update was skipped.
        spikes: what the guard against jumps of the loss remembers.
        ledger: state of the ledger.
        eval_loss_nats: held-out loss measured at this step, None when it was not.
        mlflow_run_id: the run that a resume continues.
        reservoir: digest per frozen matrix, and their specs.
        tokenizer_digest: digest of the tokenizer.
        data_digest: digest of the tokenised training corpus.
        records: the newest records of the run, each with step and timestamp_ms, to complete a log that was cut off.
        files: path inside the checkpoint -> {"sha256", "bytes"}.
    """

    step: int
    world_size: int
    zero_stage: int
    cursor: int
    skipped_steps: int
    ledger: dict[str, Any]
    eval_loss_nats: float | None
    mlflow_run_id: str | None
    reservoir: dict[str, Any]
    tokenizer_digest: str
    data_digest: str
    spikes: dict[str, Any] = field(default_factory=dict)
    records: list[dict[str, float]] = field(default_factory=list)
    files: dict[str, dict[str, Any]] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=lambda: package_versions())
    format_version: int = FORMAT_VERSION


def package_versions() -> dict[str, str]:
    """Return the versions of rcdist and of what a checkpoint's bytes depend on."""
    return {"rcdist": rcdist.__version__} | {name: metadata.version(name) for name in _PACKAGES}


def checkpoint_name(step: int) -> str:
    """Name the folder of the checkpoint of `step`."""
    return f"{_PREFIX}{step:08d}"


def step_of(folder: Path) -> int:
    """Return the step of a checkpoint's folder."""
    return int(folder.name.removeprefix(_PREFIX))


def rank_list_name(rank: int) -> str:
    """Name the list of the files that a rank has written, with their sizes and digests."""
    return f"files-{rank:05d}.json"


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write everything but the files, which each rank lists when it has written its own."""
    fields = {name: value for name, value in asdict(manifest).items() if name != "files"}
    (folder / MANIFEST).write_text(json.dumps(fields, indent=1))


def find_checkpoints(run_dir: Path) -> list[Path]:
    """List the checkpoint folders of a run, newest first; whether they are valid is not looked at."""
    names = [p for p in run_dir.glob(f"{_PREFIX}*") if p.name.removeprefix(_PREFIX).isdigit()]
    return sorted(names, key=step_of, reverse=True)


def read_manifest(folder: Path) -> Manifest:
    """Read the manifest of a checkpoint.

    Raises:
        CheckpointError: there is none, it cannot be read, or it has another format version.
    """
    path = folder / MANIFEST
    try:
        data = json.loads(path.read_text())
        manifest = Manifest(**data)
        for rank in range(manifest.world_size):
            path = folder / rank_list_name(rank)
            manifest.files |= json.loads(path.read_text())
    except (OSError, ValueError, TypeError) as error:
        raise CheckpointError(
            "checkpoint", folder, f"{path.name} cannot be read ({error})", "Use another checkpoint"
        ) from error
    if manifest.format_version != FORMAT_VERSION:
        raise CheckpointError(
            "checkpoint",
            folder,
            f"format version {manifest.format_version}, this rcdist reads version {FORMAT_VERSION}",
            "Read it with the rcdist version that wrote it",
        )
    return manifest


def verify_checkpoint(folder: Path) -> Manifest:
    """Read the manifest and prove every file that it lists.

    Raises:
        CheckpointError: names the file and both sizes or digests.
    """
    manifest = read_manifest(folder)
    for name, expected in manifest.files.items():
        path = folder / name
        if not path.is_file():
            raise CheckpointError("checkpoint", folder, f"file {name} is missing", "Use another checkpoint")
        if path.stat().st_size != expected["bytes"]:
            raise CheckpointError(
                "checkpoint",
                folder,
                f"file {name} has {path.stat().st_size} bytes, its manifest says {expected['bytes']}",
                "Use another checkpoint",
            )
        with path.open("rb") as handle:
            digest = hashlib.file_digest(handle, "sha256").hexdigest()
        if digest != expected["sha256"]:
            raise CheckpointError(
                "checkpoint",
                folder,
                f"file {name} has digest {digest}, its manifest says {expected['sha256']}",
                "Use another checkpoint",
            )
    return manifest


def find_newest_valid(run_dir: Path) -> tuple[Path, list[CheckpointError]] | None:
    """Return the newest valid checkpoint of a run and what was wrong with newer ones; None when there is no checkpoint.

    Raises:
        CheckpointError: there are checkpoints and none is valid.
    """
    damaged: list[CheckpointError] = []
    for folder in find_checkpoints(run_dir):
        try:
            verify_checkpoint(folder)
        except CheckpointError as error:
            damaged.append(error)
            continue
        return folder, damaged
    if damaged:
        raise CheckpointError(
            "checkpoint",
            run_dir,
            f"all {len(damaged)} checkpoints are damaged, the newest: {damaged[0]}",
            "Move the folder away to start again, or choose another name",
        )
    return None


def prune_checkpoints(run_dir: Path, keep_latest: int, keep_every_steps: int | None = None) -> list[Path]:
    """Delete all checkpoints but the newest `keep_latest`, the one with the lowest held-out loss, and every n-th step.

    A folder without a manifest is a save in progress, or what a crash left of one: it is kept while it is the newest.

    Returns:
        The deleted folders.
    """
    folders = find_checkpoints(run_dir)
    losses: dict[Path, float] = {}
    for folder in folders:
        try:
            loss = read_manifest(folder).eval_loss_nats
        except CheckpointError:
            continue
        if loss is not None:
            losses[folder] = loss
    keep = set(folders[:keep_latest])
    if keep_every_steps is not None:
        keep |= {folder for folder in folders if step_of(folder) % keep_every_steps == 0}
    if losses:
        keep.add(min(losses, key=lambda folder: losses[folder]))
    doomed = [folder for folder in folders if folder not in keep]
    for folder in doomed:
        # Without its manifest a half-deleted checkpoint can never pass for a valid one.
        (folder / MANIFEST).unlink(missing_ok=True)
        shutil.rmtree(folder, ignore_errors=True)
    return doomed
