"""Find, prove and retire the checkpoints of a run."""

import hashlib
import logging
import shutil
from dataclasses import dataclass
from pathlib import Path

from rcdist.checkpoint.manifest import MANIFEST, Manifest, read_manifest
from rcdist.errors import CheckpointError

logger = logging.getLogger("rcdist")

_PREFIX = "step-"


@dataclass(frozen=True)
class Found:
    """Hold a checkpoint whose files have all been proved.

    Attributes:
        folder: of the checkpoint.
        manifest: its manifest.
        damaged: what is wrong with newer ones of the same run.
    """

    folder: Path
    manifest: Manifest
    damaged: tuple[CheckpointError, ...] = ()


def checkpoint_name(step: int) -> str:
    """Name the folder of the checkpoint of `step`."""
    return f"{_PREFIX}{step:08d}"


def step_of(folder: Path) -> int:
    """Return the step of a checkpoint's folder."""
    return int(folder.name.removeprefix(_PREFIX))


def find_checkpoints(run_dir: Path) -> list[Path]:
    """List the checkpoint folders of a run, newest first, valid or not."""
    names = [p for p in run_dir.glob(f"{_PREFIX}*") if p.name.removeprefix(_PREFIX).isdigit()]
    return sorted(names, key=step_of, reverse=True)


def prove_checkpoint(folder: Path) -> Found:
    """Read the manifest and prove every file that it lists. Cost: one read of all files.

    Raises:
        CheckpointError: names the file and both sizes or digests.
    """
    manifest = read_manifest(folder)

    def damage(rule: str) -> CheckpointError:
        return CheckpointError("checkpoint", folder, rule, "Use another checkpoint")

    for name, expected in manifest.files.items():
        path = folder / name
        if not path.is_file():
            raise damage(f"file {name} is missing")
        if path.stat().st_size != expected["bytes"]:
            raise damage(f"file {name} has {path.stat().st_size} bytes, its manifest says {expected['bytes']}")
        with path.open("rb") as handle:
            digest = hashlib.file_digest(handle, "sha256").hexdigest()
        if digest != expected["sha256"]:
            raise damage(f"file {name} has digest {digest}, its manifest says {expected['sha256']}")
    return Found(folder, manifest)


def find_newest_valid(run_dir: Path, proved: Found | None = None) -> Found | None:
    """Return the newest valid checkpoint of a run, None when the run has no checkpoint that was ever finished.

    Args:
        run_dir: of the run.
        proved: a checkpoint that need not be read again.

    Raises:
        CheckpointError: there are checkpoints and none is valid.
    """
    damaged: list[CheckpointError] = []
    for folder in find_checkpoints(run_dir):
        try:
            found = proved if proved is not None and proved.folder == folder else prove_checkpoint(folder)
        except CheckpointError as error:
            damaged.append(error)
            continue
        return Found(folder, found.manifest, tuple(damaged))
    if all(isinstance(damage.__cause__, FileNotFoundError) for damage in damaged):
        # A manifest or a rank's list is missing: a worker was killed while it saved, and nothing was saved before.
        for unfinished in damaged:
            logger.warning("skipped: %s", unfinished)
        return None
    raise CheckpointError(
        "checkpoint",
        run_dir,
        f"all {len(damaged)} checkpoints are damaged, the newest: {damaged[0]}",
        "Move the folder away to start again, or choose another name",
    )


def find_at(path: Path) -> Found:
    """Return the checkpoint at a path: a checkpoint's folder, or a run's, whose newest valid checkpoint it is.

    Raises:
        CheckpointError: nothing is there, or it is damaged.
    """
    if not path.is_dir():
        raise CheckpointError("checkpoint", path, "there is no such folder", "Give a run's folder or a step-... folder")
    if (path / MANIFEST).exists() or path.name.startswith(_PREFIX):
        return prove_checkpoint(path)
    found = find_newest_valid(path)
    if found is None:
        raise CheckpointError("checkpoint", path, "the folder has no step-... checkpoint", "Train the run first")
    return found


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
