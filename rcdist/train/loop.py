"""Train on one worker, top to bottom: receive, build, restore, step, evaluate, save, report. Read this file first."""

import contextlib
import logging
import math
import threading
import time
from dataclasses import replace
from typing import Any

import psutil
import ray.train
import ray.train.torch
import torch
import torch.distributed as dist

from rcdist.checkpoint.state import LoopState
from rcdist.config import JobConfig
from rcdist.data.loader import Loader
from rcdist.data.shards import TokenCorpus
from rcdist.errors import DivergedError, RcdistError
from rcdist.model.lm import LanguageModel
from rcdist.model.reservoir import ReservoirBank
from rcdist.ops.backend import describe_backend, force
from rcdist.ops.host import prepare_host
from rcdist.startup import Startup
from rcdist.storage import say
from rcdist.tracking.ledger import Ledger
from rcdist.tracking.samples import SampleLog
from rcdist.train.broadcast import receive_bank
from rcdist.train.checkpointer import Checkpointer
from rcdist.train.collectives import broadcast_object
from rcdist.train.control import Interrupts, budget_error, is_stop_requested, read_stop, stop_if_repeated, write_stop
from rcdist.train.deepspeed_config import max_windows, split_batch
from rcdist.train.divergence import SpikeGuard, describe_limit
from rcdist.train.energy import EnergyCounter
from rcdist.train.engine import Engine
from rcdist.train.evaluate import evaluate
from rcdist.train.events import Event, flush_events, log_event
from rcdist.train.fault_injection import FaultInjector
from rcdist.train.health import Health
from rcdist.train.meter import LedgerFile, Meter
from rcdist.train.micro_batch import with_micro_batch
from rcdist.train.optim import learning_rate_at, weight_decay_at
from rcdist.train.payload import Payload
from rcdist.train.shared_files import shared_files, with_data_here
from rcdist.train.step_result import StepResult
from rcdist.train.wire import WireMeter

_EARLY_RECORD = 3
"""Step that is recorded whatever `train.log_every_steps` says, so that the time left is known early."""


def train_loop_per_worker(arguments: dict[str, Any]) -> None:
    """Run one worker of a training run; `arguments` holds a Payload as `payload`."""
    entered = time.monotonic()
    payload: Payload = arguments["payload"]
    startup = Startup(payload.began, payload.startup)
    if not payload.is_here:
        startup.mark("Ray Train", psutil.Process().create_time())
    startup.mark("worker")
    config = payload.config
    device = ray.train.torch.get_device()
    _prepare_process(config, device)
    energy = EnergyCounter(device)
    with shared_files(config):
        if broadcast_object(read_stop(config.run_dir) is not None or is_stop_requested(config.run_dir)):
            return  # Ray has restarted the workers after an error that would only repeat: the driver raises it
        _work(with_data_here(payload), device, energy, entered, startup)


def _work(payload: Payload, device: torch.device, energy: EnergyCounter, entered: float, startup: Startup) -> None:
    """Build what trains, and train; write down what a restart of the workers would only repeat."""
    config = payload.config
    try:
        bank, arrival = receive_bank(config, payload.bank_ref, payload.bank_digest)
        startup.mark("reservoir")
        compiling = _start_compiling(config, device)
        wire = WireMeter(bank.buffers())
        model = _build_model(config, bank)
        config = with_micro_batch(config, model, device)
        payload = replace(payload, config=config)
        with (
            wire.installed(),
            contextlib.closing(Engine(model, config, world_size=dist.get_world_size(), device=device)) as engine,
        ):
            startup.mark("model")
            if compiling is not None:
                compiling.join()
                startup.mark("kernels")
            _train(payload, engine, bank, arrival, wire, energy, entered, startup)
    except RcdistError as error:
        write_stop(config.run_dir, error)
        raise
    except Exception as error:
        stop_if_repeated(config.run_dir, dist.get_rank(), error)
        raise


def _start_compiling(config: JobConfig, device: torch.device) -> threading.Thread | None:
    """Compile kernels, on a GPU, while DeepSpeed is imported and the model is built."""
    if device.type != "cuda" or config.train.backend not in ("auto", "triton") or config.model.rounding != "nearest":
        return None
    from rcdist.ops.precompile_triton import precompile

    dtype = torch.bfloat16 if config.train.precision == "bf16" else torch.float32
    return precompile(config.model, split_batch(config, dist.get_world_size())[0], config.data.seq_len, dtype, device)


def _build_model(config: JobConfig, bank: ReservoirBank) -> LanguageModel:
    return LanguageModel(
        config.architecture,
        bank,
        seed=config.seed,
        activation_checkpointing=config.train.activation_checkpointing,
        separately=config.train.zero_stage == 3,
    )


def _train(
    payload: Payload,
    engine: Engine,
    bank: ReservoirBank,
    arrival: dict[str, float],
    wire: WireMeter,
    energy: EnergyCounter,
    entered: float,
    startup: Startup,
) -> None:
    config, rank, world_size = payload.config, dist.get_rank(), dist.get_world_size()
    corpora = payload.data.train.path, payload.data.validation.path
    train_corpus, validation_corpus = (TokenCorpus(path, config.model.vocab_size) for path in corpora)
    ledger, faults = Ledger(), FaultInjector(config.run_dir, rank)
    checkpointer = Checkpointer(payload, engine, bank, ledger, faults)
    state, restored = checkpointer.restore()
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
    ledger_file = LedgerFile(config.run_dir, payload.began) if rank == 0 else None
    # A job's first workers are paid for from where they began; from a failure to there it held them for nothing.
    down_s = ledger_file.recover(ledger) if ledger_file else 0.0
    started_s = time.monotonic() - entered
    meter = Meter(config, payload.price, ledger, wire, world_size, engine.device, ledger_file, energy)
    ledger.worker_starts += 1
    engine.before_update(lambda: faults.strike("optimizer", state.step + 1))
    guard = SpikeGuard(config.divergence, state.spikes)
    deadline = payload.began + (config.train.max_wall_s or math.inf)
    interrupts = Interrupts(config, ledger, deadline, rank, has_notice=not payload.is_here)
    if rank == 0:
        say(describe_backend(next(engine.module.parameters())))
    if rank == 0 and restored:
        say(f"resumed from {restored.name} at step {state.step}, window {state.cursor}")

    meter.charge("startup", extra_s=started_s)
    meter.charge("idle", extra_s=max(down_s - started_s, 0.0))
    started = broadcast_object(time.time_ns())
    samples = SampleLog(config.run_dir, started, rank) if config.tracking.log_samples else None
    last, first = config.train.steps, state.step + 1
    startup.mark("checkpoint" if restored else "loader")
    while state.step < last:
        meter.begin_step(looks_inside=bool(arrival) or _is_due(state.step + 1, config.tracking.health_every_steps))
        batch = loader.next_step()
        limit = guard.limit()
        faults.strike("forward", state.step + 1)
        result = engine.train_step(
            faults.change(batch.micro_batches, state.step + 1),
            loader.global_tokens,
            learning_rate=learning_rate_at(state.step, last, config.optimizer, config.schedule),
            weight_decay=weight_decay_at(state.step, last, config.optimizer, config.schedule),
            loss_limit=limit,
            also_sum=(meter.take_joules(), *interrupts.poll(), checkpointer.poll()),
        )
        state.step += 1
        state.cursor = loader.cursor
        if samples is not None:
            samples.append(state.step, batch.samples)
        state.skipped_steps += not result.applied
        meter.count_step(result, loader)
        _watch_loss(config, checkpointer, state, guard, result, limit)
        if rank == 0 and state.step == first:
            startup.mark("first step")
            say(startup.describe())

        record: dict[str, float] = {}
        is_last = state.step == last
        joules, *reasons, num_unwritten = result.summed
        meter.add_joules(joules)
        if num_unwritten:
            checkpointer.settle()
        interruption = interrupts.agree(tuple(reasons))
        if interruption.is_preempted:
            ledger.preemptions += 1
            detail = "a node is about to be taken away: saving now"
            log_event(config.run_dir, state.step, Event.PREEMPTION_NOTICE, detail)
        is_ending = is_last or interruption.is_stopped or interruption.used_up is not None
        if is_last or _is_due(state.step, config.evaluate.every_steps):
            record |= evaluate(
                engine,
                validation_corpus,
                seq_len=config.data.seq_len,
                micro_batch_size=max_windows(config),
                max_tokens=None if is_last else config.evaluate.max_tokens,
            )
        if _is_due(state.step, config.tracking.health_every_steps):
            record |= health.read(batch.micro_batches[0])
        is_urgent = is_ending or interruption.is_preempted
        save_due = is_urgent or _is_due(state.step, config.checkpoint.every_steps)
        is_early = state.step == _EARLY_RECORD
        if record or save_due or is_early or _is_due(state.step, config.train.log_every_steps):
            record, arrival = arrival | record, {}  # what is said of the start is said once
            record |= {"train/epoch": state.cursor / train_corpus.num_windows(config.data.seq_len)}
            record |= {"train/rollbacks": float(state.spikes.rollbacks)}
            flush_events(config.run_dir)
            record |= meter.read(step=state.step, skipped_steps=state.skipped_steps)
            state.records.append({"step": state.step, "timestamp_ms": int(time.time() * 1000), **record})
            if health.damage is not None:
                checkpointer.report(state)
                raise health.damage
            if save_due:
                checkpointer.save(state, wait=is_urgent)
                meter.charge("checkpoint")
            else:
                checkpointer.report(state)
        if interruption.used_up is not None and not is_last and rank == 0:
            write_stop(config.run_dir, budget_error(config, interruption.used_up, state.step, ledger))
        if is_ending:
            break
    meter.add_joules(meter.take_joules() * world_size)  # since the last step; every worker's is about the same
    loader.close()
    flush_events(config.run_dir)
    if ledger_file is not None:
        ledger_file.write(ledger, now=True)


def _watch_loss(
    config: JobConfig,
    checkpointer: Checkpointer,
    state: LoopState,
    guard: SpikeGuard,
    result: StepResult,
    limit: float,
) -> None:
    """Let the guard see the loss of a step, and do what it decides.

    Raises:
        DivergedError: training is to stop.
    """
    if not result.applied and config.train.on_nonfinite == "stop":
        raise DivergedError(
            "train.on_nonfinite",
            "stop",
            f"step {state.step} has loss {result.loss_nats} and gradient norm {result.grad_norm}",
            "Lower optimizer.learning_rate, or use train.on_nonfinite=skip",
        )
    if not result.applied:
        detail = f"loss {result.loss_nats:.4f}, {describe_limit(state.spikes.losses, limit)}"
        detail += f", gradient norm {result.grad_norm:.3g}"
        log_event(config.run_dir, state.step, Event.STEP_SKIPPED, detail)
    action = guard.observe(state.step, result.loss_nats, applied=result.applied)
    if action == "stop":
        tried = f"after {config.divergence.max_rollbacks} returns to a checkpoint"
        log_event(config.run_dir, state.step, Event.DIVERGED, f"loss {result.loss_nats:.4f} {tried}")
        raise DivergedError(
            "divergence.max_rollbacks",
            config.divergence.max_rollbacks,
            f"step {state.step} has loss {result.loss_nats:.4f} after as many returns to a checkpoint",
            "Lower optimizer.learning_rate, or look at the data around this step",
        )
    if action == "roll_back":
        checkpointer.go_back(state.step, state.spikes, guard.first_skipped)


def _is_due(step: int, every_steps: int | None) -> bool:
    return every_steps is not None and step % every_steps == 0


def _prepare_process(config: JobConfig, device: torch.device) -> None:
    # Ray Train's workers log every report in full on the root logger; the driver prints one line of it.
    logging.getLogger().setLevel(logging.WARNING)
    if device.type == "cpu":
        prepare_host(max(int(config.cluster.cpus_per_worker), 1))
    torch.manual_seed(config.seed)
    force(config.train.backend)
