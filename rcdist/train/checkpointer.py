"""Save and restore a worker: copy the state, train on, write in the background, report it to Ray's controller."""

import copy
import shutil
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ray.train
import torch.distributed as dist
from ray.train import Checkpoint, CheckpointUploadMode

from rcdist.checkpoint.files import count_bytes, write_rank
from rcdist.checkpoint.find import Found, checkpoint_name, find_newest_valid
from rcdist.checkpoint.manifest import CONFIG, TOKENIZER, Manifest, write_manifest
from rcdist.checkpoint.resize import converted
from rcdist.checkpoint.state import LoopState
from rcdist.data.tokenizer import load_tokenizer
from rcdist.errors import CheckpointError, DivergedError
from rcdist.model.reservoir import ReservoirBank
from rcdist.tracking.jsonl import MetricsLog
from rcdist.tracking.ledger import Ledger
from rcdist.tracking.provenance import redact
from rcdist.train.collectives import broadcast_object, gather_objects
from rcdist.train.engine import Engine
from rcdist.train.events import Event, log_event
from rcdist.train.fault_injection import FaultInjector
from rcdist.train.payload import Payload

_ROOM = 1.05
"""Free bytes over those of a checkpoint: file systems need some for themselves."""

_RECORDS_IN_FLIGHT = 8
"""More records than can be on their way from a worker to the controller's log at one time."""


class Checkpointer:
    """Save and restore what a worker holds; all workers call every method in the same steps.

    Training waits for a copy in host memory only, and for the writing of the checkpoint before, should that still go
    on: there is one copy at a time.

    Args:
        payload: the run.
        engine: tensors.
        bank: whose digests go into each checkpoint.
        ledger: what was used so far.
        faults: may kill the worker in the middle of it.
    """

    def __init__(
        self, payload: Payload, engine: Engine, bank: ReservoirBank, ledger: Ledger, faults: FaultInjector
    ) -> None:
        self._payload, self._config, self._engine, self._bank = payload, payload.config, engine, bank
        self._ledger, self._faults = ledger, faults
        self._is_idle = threading.Event()
        self._is_idle.set()

    def restore(self) -> tuple[LoopState, Path | None]:
        """Continue from the newest valid checkpoint of this run, also after a restart of the workers by Ray.

        A run without one starts from the checkpoint that the driver found, if it found one.

        Returns:
            The state of the loop, and the checkpoint's folder, None at step 0.
        """
        found: Found | None = None
        if dist.get_rank() == 0:
            resume = self._payload.resume
            found = find_newest_valid(self._config.run_dir, proved=resume) or resume
            known = {str(damage) for damage in resume.damaged} if resume else set()
            for damage in found.damaged if found else ():
                if str(damage) not in known:
                    print(f"skipped: {damage}", flush=True)
        found = broadcast_object(found)
        if found is None:
            return LoopState(), None
        self._load(found)
        if dist.get_rank() == 0 and found.folder.parent == self._config.run_dir:
            # Nobody else writes now: the workers before this one are gone, and the controller waits for a report.
            MetricsLog(self._config.run_dir).complete(found.manifest.state.records)
        self._ledger.load(found.manifest.ledger)
        return found.manifest.state, found.folder

    def go_back(self, step: int) -> None:
        """Take weights and optimizer from the newest valid checkpoint; steps and data go on past what led here.

        Raises:
            DivergedError: there is no checkpoint yet.
        """
        found = broadcast_object(find_newest_valid(self._config.run_dir) if dist.get_rank() == 0 else None)
        if found is None:
            raise DivergedError(
                "divergence.max_skipped",
                self._config.divergence.max_skipped,
                f"one more step was skipped by step {step}, and there is no checkpoint to go back to",
                "Lower optimizer.learning_rate, or set checkpoint.every_steps",
            )
        self._load(found)
        detail = f"weights and optimizer are those of {found.folder.name}"
        log_event(self._config.run_dir, step, Event.ROLLED_BACK, detail)

    def _load(self, found: Found) -> None:
        """Read tensors, whatever number of workers wrote them."""
        manifest = found.manifest
        # Without ZeRO every worker holds, and one has written, the whole state.
        if manifest.zero_stage == 0 or manifest.world_size == dist.get_world_size():
            self._engine.restore(found.folder)
            return
        is_first = ray.train.get_context().get_local_rank() == 0
        with converted(found.folder, is_first_of_node=is_first) as universal:
            self._engine.restore(universal, is_universal=True)

    def report(self, state: LoopState) -> None:
        """Send the newest record to the controller; only rank 0's counts."""
        ray.train.report(state.records[-1] if dist.get_rank() == 0 else {})

    def save(self, state: LoopState, *, wait: bool) -> None:
        """Save a checkpoint, and send the newest record with it once it is written.

        Args:
            state: of this step; of its records those are dropped that the controller has for certain.
            wait: until it is written, because the run may end next.

        Raises:
            CheckpointError: the storage has no room, and this was the last chance to save.
        """
        # Not for ever: Ray skips a report while it takes a failed group of workers down.
        self._is_idle.wait(self._config.cluster.hang_timeout_s)
        target = self._config.run_dir / checkpoint_name(state.step)
        contents = self._engine.snapshot()
        manifest = None
        if dist.get_rank() == 0:
            # What an earlier attempt left of this step may come from another number of workers.
            shutil.rmtree(target, ignore_errors=True)
            contents |= self._describe_run()
            manifest = self._manifest(state)
        needed = sum(gather_objects(count_bytes(contents)))  # no rank writes before the old folder is gone
        lack = next(filter(None, gather_objects(_lacks_room(self._config.storage, needed))), None)
        if lack is None:
            self._write(state, target, contents, manifest, wait)
        elif wait:
            raise CheckpointError(
                "storage_path",
                self._config.storage_path,
                f"the checkpoint of step {state.step} cannot be saved: {lack}",
                "Make room; the same command goes on from the checkpoint before",
            )
        else:
            detail = f"{lack}; training goes on, the checkpoint before stands"
            log_event(self._config.run_dir, state.step, Event.CHECKPOINT_SKIPPED, detail)
            self.report(state)
        state.records = state.records[-_RECORDS_IN_FLIGHT:]

    def _write(
        self, state: LoopState, target: Path, contents: Mapping[str, Any], manifest: Manifest | None, wait: bool
    ) -> None:
        """Let Ray call for the files, in a thread of its own unless to be waited for."""
        storage, rank, step = ray.train.get_context().get_storage(), dist.get_rank(), state.step

        def upload(_: Checkpoint, name: str) -> Checkpoint:
            try:
                write_rank(target, rank, contents)
                self._faults.kill_at("saving", step)
                if manifest is not None:
                    write_manifest(target, manifest)
            finally:
                self._is_idle.set()
            return Checkpoint(f"{storage.experiment_fs_path}/{name}", storage.storage_filesystem)

        self._is_idle.clear()
        ray.train.report(
            state.records[-1] if rank == 0 else {},
            checkpoint=Checkpoint.from_directory(target),
            checkpoint_dir_name=target.name,
            checkpoint_upload_mode=CheckpointUploadMode.SYNC if wait else CheckpointUploadMode.ASYNC,
            delete_local_checkpoint_after_upload=False,
            checkpoint_upload_fn=upload,
        )

    def _describe_run(self) -> dict[str, bytes]:
        """Return settings and tokenizer as files."""
        with tempfile.TemporaryDirectory() as folder:
            load_tokenizer(Path(self._payload.data.tokenizer_dir)).save(Path(folder))
            files = [path for path in Path(folder).rglob("*") if path.is_file()]
            found = {f"{TOKENIZER}/{path.relative_to(folder).as_posix()}": path.read_bytes() for path in files}
        return found | {CONFIG: redact(self._config.model_dump_json(indent=1)).encode()}

    def _manifest(self, state: LoopState) -> Manifest:
        return Manifest(
            state=copy.deepcopy(state),
            world_size=dist.get_world_size(),
            zero_stage=self._config.train.zero_stage,
            ledger=copy.copy(self._ledger),
            mlflow_run_id=self._payload.mlflow_run_id,
            reservoir={
                "digest": self._bank.digest(),
                "matrices": self._bank.digests(),
                "specs": [spec.to_dict() for spec in self._bank.specs],
            },
            tokenizer_digest=self._payload.data.tokenizer_digest,
            data_digest=self._payload.data.train.digest,
        )


def _lacks_room(folder: Path, needed: int) -> str | None:
    """Say that a disk is too full."""
    free = shutil.disk_usage(folder).free
    return None if free > needed * _ROOM else f"{folder} needs {needed:,} bytes, and {free:,} are free"
