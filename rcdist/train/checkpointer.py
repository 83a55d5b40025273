"""Save and restore a worker: copy the state, train on, and write in the background until the checkpoint is complete."""

import copy
import json
import tempfile
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import ray.train
import torch.distributed as dist

from rcdist.checkpoint.files import count_bytes, write_rank
from rcdist.checkpoint.find import Found
from rcdist.checkpoint.manifest import CONFIG, TOKENIZER, Manifest
from rcdist.checkpoint.resize import converted
from rcdist.checkpoint.state import LoopState, SpikeState
from rcdist.data.tokenizer import load_tokenizer
from rcdist.errors import CheckpointError, DivergedError
from rcdist.model.reservoir import ReservoirBank
from rcdist.tracking.jsonl import MetricsLog
from rcdist.tracking.ledger import Ledger
from rcdist.tracking.provenance import redact_tree
from rcdist.train.collectives import from_first_rank, gather_objects
from rcdist.train.engine import Engine
from rcdist.train.events import Event, log_event
from rcdist.train.fault_injection import FaultInjector
from rcdist.train.payload import Payload
from rcdist.train.saves import saves_of

_ROOM = 1.05
"""Free bytes over those of a checkpoint: file systems need some for themselves."""

_RECORDS_IN_FLIGHT = 8
"""More records than can be on their way from a worker to the controller's log at one time."""


@dataclass
class _Writing:
    """Hold a checkpoint that this rank is writing, or has written."""

    step: int
    folder: Path
    thread: threading.Thread
    num_records: int
    failure: str | None = None


class Checkpointer:
    """Save and restore what a worker holds; all workers call every method in the same steps.

    Training waits for a copy in host memory only, and for the writing of the checkpoint before, should that still go
    on: there is one copy at a time. Nobody waits at the end of the writing: who is the last to finish his share gives
    the checkpoint its name.

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
        self._run_dir = self._config.run_dir
        self._saves = saves_of(self._config)
        self._writing: _Writing | None = None
        self._log = MetricsLog(self._run_dir) if payload.is_here else None

    def restore(self) -> tuple[LoopState, Path | None]:
        """Continue from the newest valid checkpoint of this run, also after a restart of the workers by Ray.

        A run without one starts from the checkpoint that the driver found, if it found one. What a start from another
        run's checkpoint takes over is its weights, optimizer, step and place in the data; not what that run has spent.

        Returns:
            The state of the loop, and the checkpoint's folder, None at step 0.
        """
        found = self._saves.find(self._payload.resume)
        if found is None:
            return LoopState(), None
        state, ledger = found.manifest.state, found.manifest.ledger
        self._load(found, state.step)
        if found.folder.parent == self._run_dir:
            if dist.get_rank() == 0 and self._config.bucket is None:
                # Nobody else writes now: the workers before this one are gone, the controller waits for a report.
                MetricsLog(self._run_dir).complete(state.records)
        else:
            ledger = Ledger(tokens=ledger.tokens)
        self._ledger.load(ledger)
        if self._config.bucket is not None:
            self._repeat(state)
        return state, found.folder

    def _repeat(self, state: LoopState) -> None:
        """Send a checkpoint's newest records once more: what was on its way to another node may have been lost."""
        for record in state.records:
            if self._log is None:
                ray.train.report(record if dist.get_rank() == 0 else {})

    def go_back(self, step: int, spikes: SpikeState, first_skipped: int) -> None:
        """Take weights and optimizer from a checkpoint of before the trouble; steps and data go on past what led here.

        It is the newest from before the first step that was skipped. Where training has gone back to that one already,
        it did not help: then it is the one before, if there is one.

        Args:
            step: that has led here.
            spikes: of the loop; it remembers where training has gone back to.
            first_skipped: the first of the skipped steps that have led here.

        Raises:
            DivergedError: there is no checkpoint from before.
        """
        self.settle()
        found = self._saves.find_before(first_skipped)
        if found is not None and found.manifest.step in spikes.returned_to:
            # If there is none, once more the first: a node keeps one checkpoint of a bucket at a time.
            found = self._saves.find_before(found.manifest.step) or self._saves.find_before(first_skipped)
        if found is None:
            raise DivergedError(
                "divergence.max_skipped",
                self._config.divergence.max_skipped,
                f"one more step was skipped by step {step}, and there is no checkpoint from before to go back to",
                "Lower optimizer.learning_rate, or set checkpoint.every_steps",
            )
        self._faults.strike("rollback", step)
        self._load(found, step)
        spikes.returned_to.append(found.manifest.step)
        # What was done since then is lost: it counts as the seconds of steps that a failure has cost.
        self._ledger.lose_since(found.manifest.ledger)
        detail = f"weights and optimizer are those of {found.folder.name}"
        log_event(self._run_dir, step, Event.ROLLED_BACK, detail)

    def _load(self, found: Found, step: int) -> None:
        """Read tensors, whatever number of workers wrote them.

        Raises:
            CheckpointError: they were trained around another reservoir.
        """
        manifest = found.manifest
        found.check_reservoir(self._payload.bank_digest)  # to which every rank has proved its own
        # Without ZeRO every worker holds, and one has written, the whole state.
        if manifest.zero_stage == 0 or manifest.world_size == dist.get_world_size():
            self._faults.strike("restore", step)
            self._engine.restore(found.folder)
            return
        context = ray.train.get_context()
        is_first = context.get_local_rank() == 0
        with converted(found.folder, node=context.get_node_rank(), is_first_of_node=is_first) as universal:
            self._faults.strike("resize", step)
            self._engine.restore(universal, is_universal=True)

    def report(self, state: LoopState) -> None:
        """Send the newest record to the controller, only rank 0's counts; or append it where there is none."""
        if self._log is not None:
            self._log.append_record(state.records[-1])
        else:
            ray.train.report(state.records[-1] if dist.get_rank() == 0 else {})

    def poll(self) -> float:
        """Return a number to be added up over the ranks: 1 if this rank could not write its share."""
        return float(self._writing is not None and self._writing.failure is not None)

    def save(self, state: LoopState, *, wait: bool) -> None:
        """Save a checkpoint, and send the newest record.

        Args:
            state: of this step; of its records those are dropped that a checkpoint and the controller have for certain.
            wait: until it is complete, because the run may end next.

        Raises:
            CheckpointError: the storage has no room, and this was the last chance to save.
        """
        before = self._writing
        if self.settle() is None and before is not None:
            state.records = state.records[max(before.num_records - _RECORDS_IN_FLIGHT, 0) :]
        contents = self._engine.snapshot()
        manifest = None
        if dist.get_rank() == 0:
            contents |= self._describe_run()
            manifest = self._manifest(state)
        needed = sum(gather_objects(count_bytes(contents)))
        lack, folder = from_first_rank(lambda: self._begin(state.step, needed))
        if folder is not None:
            folder = self._saves.here(folder)
            self._write(state, folder, contents, manifest)
            lack = self.settle() if wait else None
        elif not wait:
            detail = f"{lack}; training goes on, the checkpoint before stands"
            log_event(self._run_dir, state.step, Event.CHECKPOINT_SKIPPED, detail)
        if lack is not None and wait:
            raise CheckpointError(
                "storage_path",
                self._config.storage_path,
                f"the checkpoint of step {state.step} cannot be saved: {lack}",
                "Make room; the same command goes on from the checkpoint before",
            )
        self.report(state)

    def _begin(self, step: int, needed: int) -> tuple[str | None, Path | None]:
        """Return what is lacking, or the new folder to save into."""
        storage = self._config.storage
        free = psutil.disk_usage(str(storage)).free
        if free <= needed * _ROOM:
            return f"{storage} needs {needed:,} bytes, and {free:,} are free", None
        try:
            return None, self._saves.begin(step)
        except OSError as error:
            return f"{storage}: {error.strerror}", None

    def _write(self, state: LoopState, folder: Path, contents: Mapping[str, Any], manifest: Manifest | None) -> None:
        """Write this rank's share in a thread; the last rank to finish completes the checkpoint and retires others."""
        rank, step = dist.get_rank(), state.step

        def write() -> None:
            try:
                self._engine.wait_for_snapshot()
                write_rank(folder, rank, contents, on_write=lambda: self._faults.strike("shard", step))
                self._faults.strike("saving", step)
                self._saves.complete(folder, contents, manifest, lambda: self._faults.strike("upload", step))
            except OSError as error:
                writing.failure = f"rank {rank}: {error.filename or folder}: {error.strerror or error}"
            except Exception as error:  # nobody else would hear of it
                writing.failure = f"rank {rank}: {type(error).__name__}: {error}"

        thread = threading.Thread(target=write, daemon=True, name="checkpoint")
        writing = self._writing = _Writing(step, folder, thread, len(state.records))
        writing.thread.start()

    def settle(self) -> str | None:
        """Wait until every rank has written its share of the last checkpoint; tell, and return, what went wrong."""
        writing, self._writing = self._writing, None
        if writing is None:
            return None
        limit_s = self._config.cluster.hang_timeout_s
        writing.thread.join(limit_s)
        if writing.thread.is_alive():
            writing.failure = f"rank {dist.get_rank()}: {writing.folder}: not written within {limit_s:g} s"
        failure = next(filter(None, gather_objects(writing.failure)), None)
        self._saves.settled(writing.folder, is_whole=failure is None)
        if failure is not None:
            detail = f"the checkpoint of step {writing.step} cannot be written: {failure}"
            log_event(self._run_dir, writing.step, Event.CHECKPOINT_SKIPPED, detail)
        return failure

    def _describe_run(self) -> dict[str, bytes]:
        """Return settings and tokenizer as files."""
        with tempfile.TemporaryDirectory() as folder:
            load_tokenizer(Path(self._payload.data.tokenizer_dir)).save(Path(folder))
            files = [path for path in Path(folder).rglob("*") if path.is_file()]
            found = {f"{TOKENIZER}/{path.relative_to(folder).as_posix()}": path.read_bytes() for path in files}
        return found | {CONFIG: json.dumps(redact_tree(self._config.model_dump(mode="json")), indent=1).encode()}

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
