"""Train on one worker, top to bottom: receive, build, restore, step, evaluate, save, report. Read this file first."""

import logging
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import ray.train
import ray.train.torch
import torch
import torch.distributed as dist

from rcdist.config import JobConfig
from rcdist.data.loader import Loader
from rcdist.data.shards import TokenCorpus
from rcdist.data.tokenizer import load_tokenizer
from rcdist.errors import DivergedError
from rcdist.model.lm import LanguageModel
from rcdist.model.reservoir import ReservoirBank
from rcdist.ops.backend import backend_of, force
from rcdist.ops.host import prepare_host
from rcdist.tracking.ledger import Ledger
from rcdist.tracking.provenance import redact
from rcdist.train.broadcast import receive_bank
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
from rcdist.train.deepspeed_config import split_batch
from rcdist.train.engine import Engine
from rcdist.train.evaluate import evaluate
from rcdist.train.health import Health
from rcdist.train.meter import Meter
from rcdist.train.optim import learning_rate_at, weight_decay_at
from rcdist.train.wire import WireMeter

_RECORDS_IN_FLIGHT = 8
"""More records than can be on their way from a worker to the controller's log at one time."""


@dataclass
class LoopState:
    """Hold what must survive besides tensors and ledger; a checkpoint's manifest carries it.

    Attributes:
        step: optimizer steps done.
        skipped_steps: of these, steps whose update was skipped.
        cursor: global windows consumed.
        records: records since the checkpoint before, and a few more: a log that was cut off is completed from them.
    """

    step: int = 0
    skipped_steps: int = 0
    cursor: int = 0
    records: list[dict[str, float]] = field(default_factory=list)


def train_loop_per_worker(payload: dict[str, Any]) -> None:
    """Run one worker of a training run; see launch.py for what `payload` holds."""
    config = JobConfig(**payload["config"])
    device = ray.train.torch.get_device()
    _prepare_process(config, device)

    bank = receive_bank(config, payload["bank_ref"], payload["bank_digest"])
    wire = WireMeter(bank.buffers())
    with wire.installed():
        _train(config, payload, bank, wire, device)


def _train(
    config: JobConfig, payload: dict[str, Any], bank: ReservoirBank, wire: WireMeter, device: torch.device
) -> None:
    rank, world_size = dist.get_rank(), dist.get_world_size()
    model = LanguageModel(
        config.model,
        config.reservoir,
        bank,
        seed=config.seed,
        activation_checkpointing=config.train.activation_checkpointing,
        separately=config.train.zero_stage == 3,
    )
    engine = Engine(model, config, world_size=world_size, device=device)

    train_corpus = TokenCorpus(payload["train_corpus"].path)
    validation_corpus = TokenCorpus(payload["validation_corpus"].path)
    ledger = Ledger()
    state = LoopState()
    restored = _restore(config, engine, ledger, state)
    loader = Loader(
        train_corpus,
        seq_len=config.data.seq_len,
        windows_per_step=config.windows_per_step,
        micro_batch_size=split_batch(config, world_size)[0],
        seed=config.data.seed,
        rank=rank,
        world_size=world_size,
        cursor=state.cursor,
    )
    health = Health(engine, bank)
    meter = Meter(config, payload["price"], ledger, wire, world_size, device)
    if rank == 0:
        print(f"backend {backend_of(next(engine.module.parameters()))}", flush=True)
    if rank == 0 and restored:
        print(f"resumed from {restored.name} at step {state.step}, window {state.cursor}", flush=True)

    last = config.train.steps
    while state.step < last:
        meter.begin_step()
        batch = loader.next_step()
        result = engine.train_step(
            batch.micro_batches,
            loader.global_tokens,
            learning_rate=learning_rate_at(state.step, last, config.optimizer, config.schedule),
            weight_decay=weight_decay_at(state.step, last, config.optimizer, config.schedule),
        )
        state.step += 1
        state.cursor = loader.cursor
        state.skipped_steps += not result.applied
        meter.count_step(result, loader)
        if not result.applied and config.train.on_nonfinite == "stop":
            raise DivergedError(
                "train.on_nonfinite",
                "stop",
                f"step {state.step} has loss {result.loss_nats} and gradient norm {result.grad_norm}",
                "Lower optimizer.learning_rate, or use train.on_nonfinite=skip",
            )

        record: dict[str, float] = {}
        is_last = state.step == last
        if is_last or _is_due(state.step, config.evaluate.every_steps):
            record |= evaluate(
                engine,
                validation_corpus,
                seq_len=config.data.seq_len,
                micro_batch_size=config.train.micro_batch_size,
                max_tokens=None if is_last else config.evaluate.max_tokens,
            )
        if _is_due(state.step, config.tracking.health_every_steps):
            record |= health.read(batch.micro_batches[0])
        save_due = is_last or _is_due(state.step, config.checkpoint.every_steps)
        if record or save_due or _is_due(state.step, config.train.log_every_steps):
            # Proved when the bank was received and at every reading of the health: a difference raises.
            record |= {"reservoir/digest_ok": 1.0, "wire/start_bytes": float(payload["start_bytes"])}
            record |= {"train/epoch": state.cursor / train_corpus.num_windows(config.data.seq_len)}
            record |= meter.read(step=state.step, skipped_steps=state.skipped_steps)
            state.records.append({"step": state.step, "timestamp_ms": int(time.time() * 1000), **record})
            if save_due:
                _save_and_report(config, payload, engine, bank, ledger, state)
                state.records = state.records[-_RECORDS_IN_FLIGHT:]
            else:
                _report(state)
    loader.close()


def _is_due(step: int, every_steps: int | None) -> bool:
    return every_steps is not None and step % every_steps == 0


def _prepare_process(config: JobConfig, device: torch.device) -> None:
    # Ray Train's workers log every report in full on the root logger; the driver prints one line of it.
    logging.getLogger().setLevel(logging.WARNING)
    if device.type == "cpu":
        prepare_host(max(int(config.cluster.cpus_per_worker), 1))
    torch.manual_seed(config.seed)
    force(config.train.backend)


def _restore(config: JobConfig, engine: Engine, ledger: Ledger, state: LoopState) -> Path | None:
    """Continue from the newest valid checkpoint of this run, also after a restart of the workers by Ray."""
    choice: list[Any] = [None]
    if dist.get_rank() == 0:
        found = find_newest_valid(config.run_dir)
        if found:
            choice[0] = found[0]
            for damage in found[1]:
                print(f"skipped: {damage}", flush=True)
    dist.broadcast_object_list(choice)
    folder: Path | None = choice[0]
    if folder is None:
        return None
    manifest = read_manifest(folder)
    engine.restore(folder)
    state.step, state.cursor, state.skipped_steps = manifest.step, manifest.cursor, manifest.skipped_steps
    ledger.load_state(manifest.ledger)
    return folder


def _save_and_report(
    config: JobConfig,
    payload: dict[str, Any],
    engine: Engine,
    bank: ReservoirBank,
    ledger: Ledger,
    state: LoopState,
) -> None:
    """Save this rank's files into its own folder, exchange digests, and hand it to Ray, which merges the folders."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        engine.save(folder)
        if dist.get_rank() == 0:
            (folder / CONFIG).write_text(redact(config.model_dump_json(indent=1)))
            load_tokenizer(Path(payload["tokenizer_dir"])).save(folder / TOKENIZER)
        files: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(files, describe_files(folder))
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
        _report(state, ray.train.Checkpoint.from_directory(folder))


def _report(state: LoopState, checkpoint: ray.train.Checkpoint | None = None) -> None:
    """Send the newest record to the controller; only rank 0's counts."""
    metrics = state.records[-1] if dist.get_rank() == 0 else {}
    name = checkpoint_name(state.step) if checkpoint else None
    ray.train.report(metrics, checkpoint=checkpoint, checkpoint_dir_name=name)
