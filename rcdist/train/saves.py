"""Where a worker's checkpoints go and come from: the folder that all nodes see, or a bucket and a copy on each node."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import torch.distributed as dist

from rcdist.checkpoint.find import (
    Found,
    begin_save,
    checkpoint_name,
    find_newest_valid,
    finish_save,
    prune_checkpoints,
    set_aside,
    step_of_save,
    sweep_unfinished,
)
from rcdist.checkpoint.manifest import MANIFEST, Manifest, rank_list_name, write_manifest
from rcdist.checkpoint.remote import RemoteCheckpoints
from rcdist.config import JobConfig
from rcdist.storage import say
from rcdist.train.collectives import from_first_rank, gather_objects
from rcdist.train.shared_files import is_first_of_node


class Saves(Protocol):
    """Find and complete checkpoints; `find`, `here` and `settled` are collective calls."""

    def find(self, resume: Found | None) -> Found | None:
        """Return the newest valid checkpoint of the run, else the one that the driver found; on this node."""

    def find_before(self, step: int) -> Found | None:
        """Return the newest valid checkpoint of the run of before a step; on this node."""

    def begin(self, step: int) -> Path:
        """Make the folder into which rank 0 writes; OSError if it cannot be made."""

    def here(self, folder: Path) -> Path:
        """Return the folder into which this rank writes."""

    def complete(
        self, folder: Path, names: Iterable[str], manifest: Manifest | None, on_file: Callable[[], None]
    ) -> None:
        """Do what remains when this rank's share, files and list, is written; in a thread.

        Args:
            folder: from `here`.
            names: of the share's files.
            manifest: rank 0's.
            on_file: called after each file that is sent.
        """

    def settled(self, folder: Path, *, is_whole: bool) -> None:
        """Clear away what is left when every rank has written its share, or failed to."""


def saves_of(config: JobConfig) -> Saves:
    """Return what belongs to the run's storage."""
    return FolderSaves(config) if config.bucket is None else BucketSaves(config)


class FolderSaves:
    """All ranks write into one folder; who is the last to finish gives the checkpoint its name."""

    def __init__(self, config: JobConfig) -> None:
        self._run_dir, self._settings = config.run_dir, config.checkpoint

    def find(self, resume: Found | None) -> Found | None:
        """See `Saves`; what is damaged gets a name under which nothing reads it."""
        return from_first_rank(lambda: self._find(resume))

    def _find(self, resume: Found | None) -> Found | None:
        sweep_unfinished(self._run_dir)
        found = find_newest_valid(self._run_dir, proved=resume) or resume
        known = {str(damage) for damage in resume.damaged} if resume else set()
        for damage in found.damaged if found else ():
            if str(damage) not in known:
                say(f"skipped: {damage}")
            folder = Path(str(damage.value))
            if folder.parent == self._run_dir and folder.exists():
                set_aside(folder)
        return found

    def find_before(self, step: int) -> Found | None:
        """See `Saves`."""
        return from_first_rank(lambda: find_newest_valid(self._run_dir, before=step))

    def begin(self, step: int) -> Path:
        """See `Saves`."""
        return begin_save(self._run_dir, step)

    def here(self, folder: Path) -> Path:
        """See `Saves`."""
        return folder

    def complete(
        self, folder: Path, names: Iterable[str], manifest: Manifest | None, on_file: Callable[[], None]
    ) -> None:
        """See `Saves`."""
        if manifest is not None:
            write_manifest(folder, manifest)
        if finish_save(folder) is not None:
            prune_checkpoints(self._run_dir, self._settings.keep_latest, self._settings.keep_every_steps)

    def settled(self, folder: Path, *, is_whole: bool) -> None:
        """See `Saves`."""
        if dist.get_rank() == 0:
            # On a network file system each rank may have missed the other's last file; a failed one only takes room.
            sweep_unfinished(self._run_dir)


class BucketSaves:
    """Each rank writes on its node, and then sends its share; each node brings what is read."""

    def __init__(self, config: JobConfig) -> None:
        assert config.bucket is not None
        self._run_dir, self._settings = config.run_dir, config.checkpoint
        self._remote = RemoteCheckpoints(config.bucket, config.run_prefix, config.run_dir)

    def find(self, resume: Found | None) -> Found | None:
        """See `Saves`; a bucket's run starts from its own checkpoints only."""
        return self._bring(None)

    def find_before(self, step: int) -> Found | None:
        """See `Saves`."""
        return self._bring(step)

    def _bring(self, before: int | None) -> Found | None:
        def find() -> tuple[str | None, Found | None]:
            sweep_unfinished(self._run_dir)
            save = self._remote.fetch_newest(before)
            return save, None if save is None else find_newest_valid(self._run_dir, before=before)

        save, found = from_first_rank(find)
        failure, is_first = None, is_first_of_node()
        if save is not None and is_first and dist.get_rank():
            try:
                self._remote.fetch(save)
            except Exception as error:
                failure = error
        failure = next(filter(None, gather_objects(failure)), None)
        if failure is not None:
            raise failure
        return None if found is None else replace(found, folder=self._run_dir / found.folder.name)

    def begin(self, step: int) -> Path:
        """See `Saves`."""
        return begin_save(self._run_dir, step)

    def here(self, folder: Path) -> Path:
        """See `Saves`."""
        here = self._run_dir / folder.name
        here.mkdir(parents=True, exist_ok=True)
        return here

    def complete(
        self, folder: Path, names: Iterable[str], manifest: Manifest | None, on_file: Callable[[], None]
    ) -> None:
        """See `Saves`."""
        save = _save_of(folder)
        self._remote.push(folder, save, [*names, rank_list_name(dist.get_rank())], on_file)
        if manifest is not None:
            write_manifest(folder, manifest)
            self._remote.push(folder, save, [MANIFEST], on_file)
            self._remote.prune(self._settings.keep_latest, self._settings.keep_every_steps, writing=save)

    def settled(self, folder: Path, *, is_whole: bool) -> None:
        """See `Saves`; where one node has all of it, its copy need not be brought again."""
        if is_first_of_node():
            if is_whole:
                self._remote.mark(folder, _save_of(folder))
            sweep_unfinished(self._run_dir)
            prune_checkpoints(self._run_dir, keep_latest=1)


def _save_of(folder: Path) -> str:
    """Return the save's name in the bucket: that of the folder has the step and a token."""
    return f"{checkpoint_name(step_of_save(folder))}-{folder.name.rpartition('-')[2]}"
