"""The life of a checkpoint: saving-... while it is written, step-... once it is complete, damaged-..., deleting-..."""

import hashlib
import logging
import secrets
import shutil
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from rcdist.checkpoint.manifest import MANIFEST, ZERO_FOLDER, Manifest, read_manifest
from rcdist.errors import CheckpointError
from rcdist.storage import sync_folder

logger = logging.getLogger("rcdist")

_COMPLETE = "step-"
_SAVING = "saving-"
_DAMAGED = "damaged-"
_DELETING = "deleting-"


@dataclass(frozen=True)
class Found:
    """Hold a checkpoint whose files have all been proved.

    Attributes:
        folder: of the checkpoint.
        manifest: its manifest.
        damaged: what is wrong with newer ones of the same run; the value of each is its folder.
    """

    folder: Path
    manifest: Manifest
    damaged: tuple[CheckpointError, ...] = ()

    def check_reservoir(self, digest: str) -> None:
        """Refuse weights that were trained around other frozen matrices.

        Args:
            digest: of those that they are to be used with.

        Raises:
            CheckpointError: names both digests.
        """
        expected = self.manifest.reservoir["digest"]
        if digest != expected:
            raise CheckpointError(
                "checkpoint",
                self.folder,
                f"its reservoir has digest {expected}, this version of rcdist makes {digest} from its specs",
                f"Use rcdist {self.manifest.versions.get('rcdist')}, which wrote it",
            )


def checkpoint_name(step: int) -> str:
    """Name the folder of the checkpoint of `step`."""
    return f"{_COMPLETE}{step:08d}"


def step_of(folder: Path) -> int:
    """Return the step of a complete checkpoint's folder."""
    return int(folder.name.removeprefix(_COMPLETE))


def find_checkpoints(run_dir: Path) -> list[Path]:
    """List the complete checkpoints of a run by their names, newest first, damaged or not."""
    return sorted(filter(_is_checkpoint, run_dir.glob(f"{_COMPLETE}*")), key=step_of, reverse=True)


def _is_checkpoint(folder: Path) -> bool:
    """Tell by its name whether a folder is a complete checkpoint: a run may be called step-lr."""
    step = folder.name.removeprefix(_COMPLETE)
    return folder.name.startswith(_COMPLETE) and step.isascii() and step.isdigit()


def begin_save(run_dir: Path, step: int) -> Path:
    """Make the folder into which all ranks write a checkpoint; no other save has the same one.

    Raises:
        OSError: it cannot be made.
    """
    folder = run_dir / f"{_SAVING}{step:08d}-{secrets.token_hex(4)}"
    folder.mkdir()
    return folder


def step_of_save(folder: Path) -> int:
    """Return the step of a folder that `begin_save` has made."""
    return int(folder.name.removeprefix(_SAVING).partition("-")[0])


def finish_save(folder: Path) -> Path | None:
    """Give a checkpoint its name if everything of it is written; every rank calls this when it has written its share.

    Returns:
        The complete checkpoint, if it was this call that completed it.

    Raises:
        OSError: it cannot be given its name.
    """
    try:
        step = read_manifest(folder).step
    except CheckpointError:
        return None  # some rank still writes
    whole, target = folder.with_name(f"{folder.name}-whole"), folder.with_name(checkpoint_name(step))
    try:
        folder.rename(whole)
    except FileNotFoundError:
        return None  # another rank has just done so
    if target.exists():
        delete_folder(target)  # saved before training went back to an older one and came to this step again
    whole.rename(target)
    sync_folder(target.parent)
    return target


def sweep_unfinished(run_dir: Path) -> None:
    """Finish what is complete but for its name, and delete what a kill left half saved or half deleted.

    Only who owns the run may call it, while none of its workers saves.
    """
    for folder in run_dir.glob(f"{_SAVING}*"):
        if finish_save(folder) is None and folder.exists():
            delete_folder(folder)
    for folder in run_dir.glob(f"{_DELETING}*"):
        shutil.rmtree(folder, ignore_errors=True)


def set_aside(folder: Path) -> None:
    """Give a damaged checkpoint a name under which nothing counts or reads it."""
    target = folder.with_name(f"{_DAMAGED}{folder.name}")
    if target.exists():
        delete_folder(target)
    folder.rename(target)


def delete_folder(folder: Path) -> None:
    """Delete a folder of a run; under another name first, or half of it could pass for something."""
    doomed = folder.with_name(f"{_DELETING}{secrets.token_hex(4)}-{folder.name}")
    try:
        folder.rename(doomed)
    except FileNotFoundError:
        return
    shutil.rmtree(doomed, ignore_errors=True)


def prove_checkpoint(folder: Path) -> Found:
    """Read the manifest and prove every file that it lists. Cost: one read of all files.

    Raises:
        CheckpointError: names the file and both sizes or digests; or a link, a special file, one that no list names.
    """
    manifest = read_manifest(folder)

    def damage(rule: str) -> CheckpointError:
        return CheckpointError("checkpoint", folder, rule, "Use another checkpoint")

    for name, expected in manifest.files.items():
        size = size_of(folder, name)
        if size is None:
            raise damage(f"file {name} is missing")
        if size < 0:
            raise damage(f"{name} is a link or no plain file")
        if size != expected["bytes"]:
            raise damage(f"file {name} has {size} bytes, its manifest says {expected['bytes']}")
        with (folder / name).open("rb") as handle:
            digest = hashlib.file_digest(handle, "sha256").hexdigest()
        if digest != expected["sha256"]:
            raise damage(f"file {name} has digest {digest}, its manifest says {expected['sha256']}")
    # DeepSpeed reads what it finds, not what is listed.
    for path in (folder / ZERO_FOLDER).rglob("*"):
        name = path.relative_to(folder).as_posix()
        if name not in manifest.files and (path.is_symlink() or not path.is_dir()):
            raise damage(f"file {name} is in no list of its files")
    return Found(folder, manifest)


def size_of(folder: Path, name: str) -> int | None:
    """Return the bytes of a plain file, None where there is none, -1 for what a link leads to and what is special."""
    for path in _down_to(folder, name):
        try:
            found = path.lstat()
        except OSError:
            return None
        if stat.S_ISLNK(found.st_mode):
            return -1
    return found.st_size if stat.S_ISREG(found.st_mode) else -1


def _down_to(folder: Path, name: str) -> Iterator[Path]:
    for part in PurePosixPath(name).parts:
        folder = folder / part
        yield folder


def find_newest_valid(run_dir: Path, proved: Found | None = None, before: int | None = None) -> Found | None:
    """Return the newest valid checkpoint of a run, None when the run has no checkpoint that was ever finished.

    Args:
        run_dir: of the run.
        proved: a checkpoint that need not be read again.
        before: only checkpoints of earlier steps count.

    Raises:
        CheckpointError: there are checkpoints and none is valid.
    """
    damaged: list[CheckpointError] = []
    for folder in find_checkpoints(run_dir):
        if before is not None and step_of(folder) >= before:
            continue
        try:
            found = proved if proved is not None and proved.folder == folder else prove_checkpoint(folder)
        except CheckpointError as error:
            damaged.append(error)
            continue
        return Found(folder, found.manifest, tuple(damaged))
    if all(isinstance(damage.__cause__, FileNotFoundError) for damage in damaged):
        # Versions before 3 named a folder so while they saved: what lacks a manifest or a list was never complete.
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
    if (path / MANIFEST).exists() or _is_checkpoint(path):
        return prove_checkpoint(path)
    found = find_newest_valid(path)
    if found is None:
        raise CheckpointError("checkpoint", path, "the folder has no step-... checkpoint", "Train the run first")
    return found


def worth_keeping(manifests: Mapping[Path, Manifest], keep_latest: int, keep_every_steps: int | None) -> set[Path]:
    """Return which checkpoints, newest first, are to be kept; see `prune_checkpoints`."""
    folders = list(manifests)
    keep = set(folders[:keep_latest])
    if keep_every_steps is not None:
        keep |= {folder for folder in folders if step_of(folder) % keep_every_steps == 0}
    keep |= set([folder for folder in folders if not manifests[folder].state.spikes.skipped][:1])
    losses = {folder: loss for folder in folders if (loss := manifests[folder].eval_loss_nats) is not None}
    if losses:
        keep.add(min(losses, key=lambda folder: losses[folder]))
    return keep


def prune_checkpoints(run_dir: Path, keep_latest: int, keep_every_steps: int | None = None) -> list[Path]:
    """Delete all complete checkpoints but those that are worth keeping.

    Kept are the newest `keep_latest`, the one with the lowest held-out loss, every n-th step, and the newest from
    before a step was skipped, to which training can go back. What is visibly damaged neither counts nor is deleted;
    what was set aside as damaged goes when `keep_latest` newer ones are there.

    Returns:
        The deleted folders.
    """
    manifests: dict[Path, Manifest] = {}
    for folder in find_checkpoints(run_dir):
        try:
            manifest = read_manifest(folder)
        except CheckpointError:
            continue
        if all(size_of(folder, name) == expected["bytes"] for name, expected in manifest.files.items()):
            manifests[folder] = manifest
    folders = list(manifests)
    keep = worth_keeping(manifests, keep_latest, keep_every_steps)
    doomed = [folder for folder in folders if folder not in keep]
    if len(folders) >= keep_latest:
        oldest = folders[keep_latest - 1].name
        doomed += [path for path in run_dir.glob(f"{_DAMAGED}*") if path.name.removeprefix(_DAMAGED) < oldest]
    for folder in doomed:
        delete_folder(folder)
    return doomed
