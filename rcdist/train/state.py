"""What a run is between two steps: saved into a checkpoint, restored from one, sent to the controller."""

import os
import shutil
import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import ray.train
import torch.distributed as dist
from ray.train import CheckpointUploadMode

from rcdist.config import JobConfig
from rcdist.data.tokenizer import load_tokenizer
from rcdist.errors import CheckpointError, DivergedError
from rcdist.model.reservoir import ReservoirBank
from rcdist.tracking.jsonl import MetricsLog
from rcdist.tracking.ledger import Ledger
from rcdist.tracking.provenance import redact
from rcdist.train.checkpoint import (
    CONFIG,
    TOKENIZER,
    Manifest,
    checkpoint_name,
    describe_files,
    find_newest_valid,
    read_manifest,
    write_manifest,
)
from rcdist.train.divergence import SpikeState
from rcdist.train.engine import Engine
from rcdist.train.events import share, tell
from rcdist.train.faults import Faults
from rcdist.train.universal import converted

_TEMPORARY = "rcdist-checkpoint-"
_ROOM = 1.05
"""Free bytes over those of a checkpoint: file systems need some for themselves."""
_BYTES_PER_WEIGHT = 16
"""At most, on one worker: float32 weights, master weights and two moments."""
RECORDS_IN_FLIGHT = 8
"""More records than can be on their way from a worker to the controller's log at one time."""


@dataclass
class LoopState:
    """Hold what must survive besides tensors and ledger; a checkpoint's manifest carries it.

    Attributes:
        step: optimizer steps done.
        skipped_steps: of these, steps whose update was skipped.
        cursor: global windows consumed.
        spikes: what the guard against jumps of the loss remembers.
        records: records since the checkpoint before, and a few more: a log that was cut off is completed from them.
    """

    step: int = 0
    skipped_steps: int = 0
    cursor: int = 0
    spikes: SpikeState = field(default_factory=SpikeState)
    records: list[dict[str, float]] = field(default_factory=list)


def restore(
    payload: dict[str, Any], config: JobConfig, engine: Engine, ledger: Ledger, state: LoopState
) -> Path | None:
    """Continue from the newest valid checkpoint of this run, also after a restart of the workers by Ray.

    A run without one starts from `checkpoint.resume_from`, if there is that.
    """
    folder: Path | None = None
    if dist.get_rank() == 0:
        found = find_newest_valid(config.run_dir)
        if found:
            folder = found[0]
            for damage in found[1]:
                print(f"skipped: {damage}", flush=True)
        else:
            folder = payload["resume_from"]
    folder = share(folder)
    if folder is None:
        return None
    manifest = _load(engine, folder)
    if dist.get_rank() == 0 and folder.parent == config.run_dir:
        # Nobody else writes now: the workers before this one are gone, and the controller waits for a report.
        MetricsLog(config.run_dir).complete(manifest.records)
    state.step, state.cursor, state.skipped_steps = manifest.step, manifest.cursor, manifest.skipped_steps
    vars(state.spikes).update(manifest.spikes)
    ledger.load_state(manifest.ledger)
    return folder


def go_back(config: JobConfig, engine: Engine, state: LoopState) -> None:
    """Take weights and optimizer of the newest valid checkpoint; steps and data go on, so that what led here is past.

    Raises:
        DivergedError: there is no checkpoint yet.
    """
    folder = share(_newest_checkpoint(config.run_dir))
    if folder is None:
        raise DivergedError(
            "divergence.max_skipped",
            config.divergence.max_skipped,
            f"one more step was skipped by step {state.step}, and there is no checkpoint to go back to",
            "Lower optimizer.learning_rate, or set checkpoint.every_steps",
        )
    _load(engine, folder)
    tell(config.run_dir, state.step, "went back", f"weights and optimizer are those of {folder.name}")


def _load(engine: Engine, folder: Path) -> Manifest:
    """Read tensors, whatever number of workers wrote them."""
    manifest = read_manifest(folder)
    # Without ZeRO every worker holds, and one has written, the whole state.
    if manifest.zero_stage == 0 or manifest.world_size == dist.get_world_size():
        engine.restore(folder)
    else:
        with converted(folder, is_first_of_node=ray.train.get_context().get_local_rank() == 0) as universal:
            engine.restore(universal, is_universal=True)
    return manifest


def _newest_checkpoint(run_dir: Path) -> Path | None:
    found = find_newest_valid(run_dir) if dist.get_rank() == 0 else None
    return found[0] if found else None


def save_and_report(
    config: JobConfig,
    payload: dict[str, Any],
    engine: Engine,
    bank: ReservoirBank,
    ledger: Ledger,
    state: LoopState,
    faults: Faults,
    *,
    wait: bool,
) -> None:
    """Save this rank's files into its own folder, exchange digests, and hand it to Ray, which merges the folders.

    Training waits for the local files only; Ray copies them to the storage meanwhile.

    Args:
        wait: for the storage too, because the run may end next.

    Raises:
        CheckpointError: this is the last chance to save, and it failed.
    """
    remove_leftovers()
    # A rank that fails inside DeepSpeed's save would leave the others waiting: room is looked for before.
    failed = _first(_lacks_room(Path(tempfile.gettempdir()), _BYTES_PER_WEIGHT * engine.num_trained))
    folder = Path(tempfile.mkdtemp(prefix=f"{_TEMPORARY}{os.getpid()}-"))
    files: list[Any] = [{}] * dist.get_world_size()
    if failed is None:
        engine.save(folder)
        if dist.get_rank() == 0:
            (folder / CONFIG).write_text(redact(config.model_dump_json(indent=1)))
            load_tokenizer(Path(payload["tokenizer_dir"])).save(folder / TOKENIZER)
        dist.all_gather_object(files, describe_files(folder))
        # Ray would find out in the middle of a file, and fail the whole run.
        failed = _first(_lacks_room(config.storage, sum(e["bytes"] for found in files for e in found.values())))
    if failed is not None:
        shutil.rmtree(folder)
        if wait:
            raise CheckpointError(
                "storage_path",
                config.storage_path,
                f"the checkpoint of step {state.step} cannot be saved: {failed}",
                "Make room; the same command goes on from the checkpoint before",
            )
        tell(config.run_dir, state.step, "not saved", f"{failed}; training goes on, the checkpoint before stands")
        report(state)
        return
    if dist.get_rank() == 0:
        manifest = Manifest(
            **asdict(state),
            world_size=dist.get_world_size(),
            zero_stage=config.train.zero_stage,
            ledger=ledger.state_dict(),
            eval_loss_nats=state.records[-1].get("eval/loss_nats"),
            mlflow_run_id=payload["mlflow_run_id"],
            reservoir={
                "digest": bank.digest(),
                "matrices": bank.digests(),
                "specs": [spec.to_dict() for spec in bank.specs],
            },
            tokenizer_digest=payload["tokenizer_digest"],
            data_digest=payload["train_corpus"].digest,
        )
        write_manifest(folder, manifest, files)
    faults.kill_at("saving", state.step)
    report(state, ray.train.Checkpoint.from_directory(folder), wait=wait)


def _lacks_room(folder: Path, needed: int) -> str | None:
    """Say that a disk is too full."""
    free = shutil.disk_usage(folder).free
    return None if free > needed * _ROOM else f"{folder} needs {needed:,} bytes, and {free:,} are free"


def _first(found: str | None) -> str | None:
    """Return what the lowest rank that found something has found, on every rank."""
    everywhere: list[str | None] = [None] * dist.get_world_size()
    dist.all_gather_object(everywhere, found)
    return next((text for text in everywhere if text is not None), None)


def remove_leftovers() -> None:
    """Delete the temporary folders of workers that were killed while they saved."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_TEMPORARY}*"):
        pid = folder.name.removeprefix(_TEMPORARY).split("-")[0]
        if pid.isdigit() and not Path(f"/proc/{pid}").exists() and Path("/proc").exists():
            shutil.rmtree(folder, ignore_errors=True)


def report(state: LoopState, checkpoint: ray.train.Checkpoint | None = None, *, wait: bool = True) -> None:
    """Send the newest record to the controller; only rank 0's counts."""
    metrics = state.records[-1] if dist.get_rank() == 0 else {}
    ray.train.report(
        metrics,
        checkpoint=checkpoint,
        checkpoint_dir_name=checkpoint_name(state.step) if checkpoint else None,
        checkpoint_upload_mode=CheckpointUploadMode.SYNC if wait else CheckpointUploadMode.ASYNC,
        delete_local_checkpoint_after_upload=checkpoint is not None,
    )
