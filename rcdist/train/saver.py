"""Save checkpoints and send records: copy the state, go on training, write in the background, tell the controller."""

import shutil
import tempfile
import threading
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import ray.train
import torch.distributed as dist
from ray.train import Checkpoint, CheckpointUploadMode

from rcdist.config import JobConfig
from rcdist.data.tokenizer import load_tokenizer
from rcdist.errors import CheckpointError
from rcdist.model.reservoir import ReservoirBank
from rcdist.tracking.ledger import Ledger
from rcdist.tracking.provenance import redact
from rcdist.train.checkpoint import CONFIG, TOKENIZER, Manifest, checkpoint_name, write_manifest
from rcdist.train.engine import Engine
from rcdist.train.events import tell
from rcdist.train.faults import Faults
from rcdist.train.state import LoopState
from rcdist.train.writer import count_bytes, write_rank

_ROOM = 1.05
"""Free bytes over those of a checkpoint: file systems need some for themselves."""


class Saver:
    """Save what a worker holds; all workers call it in the same steps.

    Training waits for a copy in host memory only, and for the writing of the checkpoint before, should that still go
    on: there is one copy at a time.

    Args:
        config: where, and the settings that go into each checkpoint.
        payload: see launch.py.
        engine: tensors.
        bank: whose digests go into each checkpoint.
        ledger: what was used so far.
        faults: may kill the worker in the middle of it.
    """

    def __init__(
        self,
        config: JobConfig,
        payload: dict[str, Any],
        engine: Engine,
        bank: ReservoirBank,
        ledger: Ledger,
        faults: Faults,
    ) -> None:
        self._config, self._payload, self._engine, self._bank = config, payload, engine, bank
        self._ledger, self._faults = ledger, faults
        self._is_idle = threading.Event()
        self._is_idle.set()

    def report(self, state: LoopState) -> None:
        """Send the newest record to the controller; only rank 0's counts."""
        ray.train.report(state.records[-1] if dist.get_rank() == 0 else {})

    def save(self, state: LoopState, *, wait: bool) -> None:
        """Save a checkpoint, and send the newest record with it once it is written.

        Args:
            state: of this step.
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
        sizes: list[int] = [0] * dist.get_world_size()
        dist.all_gather_object(sizes, count_bytes(contents))  # no rank writes before the old folder is gone
        lack = _lacks_room(self._config.storage, sum(sizes))
        lacks: list[str | None] = [None] * dist.get_world_size()
        dist.all_gather_object(lacks, lack)
        failed = next((text for text in lacks if text is not None), None)
        if failed is None:
            self._write(state, target, contents, manifest, wait)
        elif wait:
            raise CheckpointError(
                "storage_path",
                self._config.storage_path,
                f"the checkpoint of step {state.step} cannot be saved: {failed}",
                "Make room; the same command goes on from the checkpoint before",
            )
        else:
            why = f"{failed}; training goes on, the checkpoint before stands"
            tell(self._config.run_dir, state.step, "not saved", why)
            self.report(state)

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
            load_tokenizer(Path(self._payload["tokenizer_dir"])).save(Path(folder))
            files = [path for path in Path(folder).rglob("*") if path.is_file()]
            found = {f"{TOKENIZER}/{path.relative_to(folder).as_posix()}": path.read_bytes() for path in files}
        return found | {CONFIG: redact(self._config.model_dump_json(indent=1)).encode()}

    def _manifest(self, state: LoopState) -> Manifest:
        return Manifest(
            **asdict(state),
            world_size=dist.get_world_size(),
            zero_stage=self._config.train.zero_stage,
            ledger=self._ledger.state_dict(),
            eval_loss_nats=state.records[-1].get("eval/loss_nats"),
            mlflow_run_id=self._payload["mlflow_run_id"],
            reservoir={
                "digest": self._bank.digest(),
                "matrices": self._bank.digests(),
                "specs": [spec.to_dict() for spec in self._bank.specs],
            },
            tokenizer_digest=self._payload["tokenizer_digest"],
            data_digest=self._payload["train_corpus"].digest,
        )


def _lacks_room(folder: Path, needed: int) -> str | None:
    """Say that a disk is too full."""
    free = shutil.disk_usage(folder).free
    return None if free > needed * _ROOM else f"{folder} needs {needed:,} bytes, and {free:,} are free"
