"""A run's checkpoints in a bucket, by the rule of those in a folder: valid when every listed file has its digest."""

import logging
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from rcdist.bucket import Bucket
from rcdist.checkpoint.find import delete_folder, find_checkpoints, prove_checkpoint, step_of, worth_keeping
from rcdist.checkpoint.manifest import MANIFEST, Manifest, assemble_manifest, rank_list_name
from rcdist.errors import CheckpointError
from rcdist.storage import new_folder, write_file

logger = logging.getLogger("rcdist")

_SAVE = re.compile(r"step-\d{8,}-[0-9a-f]{8}")
_SOURCE = ".save"
"""File of a local copy that says which of the bucket's saves it is."""
_DAMAGED = "damaged.txt"
"""Object that says of a save that a file of it is not what its list says."""


@dataclass(frozen=True)
class RemoteCheckpoints:
    """Find, bring, write and retire the checkpoints of one run.

    A bucket knows no renaming: each save has a prefix of its own, `step-00000100-<token>`, and nothing in it ever
    changes. What lacks a file, or has one of another size, was never complete. Objects that no list names are not
    looked at. On every node the run's folder holds a copy of the save that was read last.

    Attributes:
        bucket: that holds them.
        prefix: of the run.
        run_dir: folder of the run on this node.
    """

    bucket: Bucket
    prefix: str
    run_dir: Path

    def saves(self) -> dict[str, dict[str, int]]:
        """Return sizes by file, by save, newest first: saves that have a manifest and are not known to be damaged."""
        return {save: files for save, files in self._all().items() if MANIFEST in files and _DAMAGED not in files}

    def _all(self) -> dict[str, dict[str, int]]:
        """Return the same of every save, complete or not."""
        found: dict[str, dict[str, int]] = {}
        for path, size in self.bucket.list(self.prefix).items():
            save, _, name = path.partition("/")
            if _SAVE.fullmatch(save) and name:
                found.setdefault(save, {})[name] = size
        return dict(sorted(found.items(), reverse=True))

    def manifest_of(self, save: str, files: dict[str, int]) -> Manifest:
        """Read a save's manifest and lists, and compare its files' sizes.

        Raises:
            CheckpointError: it is damaged, or was never complete.
            OSError: the bucket does not answer.
        """
        place = self._place(save)
        found = assemble_manifest(lambda name: self.bucket.read(f"{self.prefix}/{save}/{name}").decode(), place)
        for name, expected in found.files.items():
            if name not in files:
                cause = FileNotFoundError(name)
                raise CheckpointError(
                    "checkpoint", place, f"file {name} is missing", "Use another checkpoint"
                ) from cause
            if files[name] != expected["bytes"]:
                rule = f"file {name} has {files[name]} bytes, its list says {expected['bytes']}"
                raise CheckpointError("checkpoint", place, rule, "Use another checkpoint")
        return found

    def fetch_newest(self, before: int | None = None) -> str | None:
        """Bring the newest valid checkpoint into the run's folder, unless it is there; others go from the folder.

        Args:
            before: only checkpoints of earlier steps count.

        Returns:
            Its save, None where the run has no checkpoint that was ever finished.

        Raises:
            CheckpointError: there are complete ones, and none is what its lists say.
            OSError: the bucket does not answer, or the disk is full.
        """
        damaged: list[CheckpointError] = []
        fetched: str | None = None
        for save, files in self.saves().items():
            if before is not None and _step(save) >= before:
                continue
            try:
                self.fetch(save, self.manifest_of(save, files))
                fetched = save
                break
            except CheckpointError as error:
                logger.warning("skipped: %s", error)
                damaged.append(error)
        for folder in find_checkpoints(self.run_dir):
            if self._source_of(folder) != fetched or fetched is None:
                delete_folder(folder)
        if fetched is None and not all(isinstance(error.__cause__, FileNotFoundError) for error in damaged):
            rule = f"all {len(damaged)} checkpoints are damaged, the newest: {damaged[0]}"
            remedy = "Delete them to start again, or choose another name"
            raise CheckpointError("checkpoint", f"{self.bucket.url}/{self.prefix}", rule, remedy)
        return fetched

    def fetch(self, save: str, manifest: Manifest | None = None) -> Path:
        """Bring one checkpoint into the run's folder, unless it is there already, and prove it.

        Raises:
            CheckpointError: a file is not what its list says; the save is marked as damaged.
        """
        folder = self.run_dir / save.rpartition("-")[0]
        if folder.exists() and self._source_of(folder) == save:
            prove_checkpoint(folder)
            return folder
        if folder.exists():
            delete_folder(folder)
        manifest = manifest or self.manifest_of(save, self.saves()[save])
        lists = [rank_list_name(rank) for rank in range(manifest.world_size)]
        with new_folder(folder) as temporary:
            for name in [MANIFEST, *lists, *manifest.files]:
                self.bucket.download(f"{self.prefix}/{save}/{name}", temporary / name)
            self.mark(temporary, save)
        try:
            prove_checkpoint(folder)
        except CheckpointError as error:
            delete_folder(folder)
            self.bucket.write(f"{self.prefix}/{save}/{_DAMAGED}", f"{error.rule}\n")
            raise CheckpointError("checkpoint", self._place(save), error.rule, error.remedy) from error
        return folder

    def push(self, folder: Path, save: str, names: Iterable[str], on_file: Callable[[], None] = lambda: None) -> None:
        """Write files of a folder into a save, in this order; call `on_file` after each."""
        for name in names:
            self.bucket.upload(folder / name, f"{self.prefix}/{save}/{name}")
            on_file()

    def mark(self, folder: Path, save: str) -> None:
        """Note that a folder is the local copy of a save."""
        write_file(folder / _SOURCE, save, durably=False)

    def prune(self, keep_latest: int, keep_every_steps: int | None, writing: str) -> list[str]:
        """Delete the saves that are not worth keeping, and older ones that were never complete.

        Args:
            keep_latest, keep_every_steps: as `prune_checkpoints`.
            writing: the save that is being written; it stays.
        """
        manifests: dict[Path, Manifest] = {}
        names: dict[Path, str] = {}
        everything = self._all()
        for save, files in everything.items():
            folder = Path(save.rpartition("-")[0])
            if _DAMAGED in files:
                continue
            try:
                manifest = self.manifest_of(save, files)
            except CheckpointError:
                continue
            if folder not in manifests:
                manifests[folder], names[folder] = manifest, save
        keep = {names[folder] for folder in worth_keeping(manifests, keep_latest, keep_every_steps)} | {writing}
        newest = max((step_of(folder) for folder in manifests), default=-1)
        old = [save for save, files in everything.items() if _step(save) <= newest and _DAMAGED not in files]
        doomed = [save for save in old if save not in keep]
        for save in doomed:
            self.bucket.delete(f"{self.prefix}/{save}/{MANIFEST}")  # first: half deleted counts as not there
            self.bucket.delete_all(f"{self.prefix}/{save}")
        return doomed

    def _place(self, save: str) -> str:
        return f"{self.bucket.url}/{self.prefix}/{save}"

    def _source_of(self, folder: Path) -> str | None:
        try:
            return (folder / _SOURCE).read_text()
        except OSError:
            return None


def _step(save: str) -> int:
    return step_of(Path(save.rpartition("-")[0]))
