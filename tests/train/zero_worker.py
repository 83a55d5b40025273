"""One process of the ZeRO tests: trains a small model under DeepSpeed, or without it, and returns what it measured."""

import random
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from rcdist.config import JobConfig
from rcdist.data.loader import MicroBatch
from rcdist.model.lm import LanguageModel
from rcdist.model.reservoir import build_bank
from rcdist.train.optim import build_parameter_groups, learning_rate_at
from rcdist.train.wire import WireBytes, WireMeter

NUM_STEPS = 20
WINDOWS, SEQ_LEN, VOCAB = 4, 16, 64


def job(stage: int, precision: str = "fp32", rounding: str = "nearest", **train: Any) -> JobConfig:
    """Return a run of 20 steps on a model with frozen, shared and inserted matrices."""
    return JobConfig(
        model={"num_layers": 3, "width": 32, "glu_width": 48, "vocab_size": VOCAB, "rounding": rounding},
        reservoir={"plan": "T cG@a f+r@b"},
        data={"seq_len": SEQ_LEN},
        optimizer={"learning_rate": 3e-3},
        train={
            "steps": NUM_STEPS,
            "global_batch_tokens": WINDOWS * SEQ_LEN,
            "micro_batch_size": 1,
            "zero_stage": stage,
            "precision": precision,
            **train,
        },
    )


def windows(step: int) -> Tensor:
    """Return the (WINDOWS, SEQ_LEN + 1) tokens of one step: a noisy copy task, so that the loss falls."""
    generator = torch.Generator().manual_seed(1000 + step)
    tokens = torch.randint(VOCAB, (WINDOWS, SEQ_LEN + 1), generator=generator)
    tokens[:, 1::2] = tokens[:, 0:-1:2]
    return tokens


def micro_batch(rows: Tensor) -> MicroBatch:
    """Wrap windows; every fifth position starts a document."""
    starts = torch.zeros(rows.shape[0], SEQ_LEN, dtype=torch.bool)
    starts[:, ::5] = True
    return MicroBatch(rows[:, :-1], rows[:, 1:], starts, torch.ones(rows.shape[0], SEQ_LEN))


def build_model(config: JobConfig) -> LanguageModel:
    """Build the model of a run as a worker does."""
    bank = build_bank(config.architecture)
    return LanguageModel(
        config.architecture,
        bank,
        config.seed,
        activation_checkpointing=config.train.activation_checkpointing,
        separately=config.train.zero_stage == 3,
    )


def train_alone(config: JobConfig, shuffle_seed: int | None = None) -> list[float]:
    """Train in one process without DeepSpeed, the micro-batches of each step in order or shuffled."""
    shuffle = random.Random(shuffle_seed)
    model = build_model(config)
    settings = config.optimizer
    optimizer = torch.optim.AdamW(
        build_parameter_groups(model, settings.weight_decay), betas=(settings.beta1, settings.beta2), eps=settings.eps
    )
    losses = []
    for step in range(NUM_STEPS):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate_at(step, NUM_STEPS, settings, config.schedule)
        total = 0.0
        order = list(range(WINDOWS))
        if shuffle_seed is not None:
            shuffle.shuffle(order)
        for i in order:
            batch = micro_batch(windows(step)[i : i + 1])
            loss = model(batch.tokens_BT, batch.starts_BT, batch.targets_BT, batch.weights_BT)
            (loss / (WINDOWS * SEQ_LEN)).backward()
            total += float(loss.detach())
        assert settings.clip_norm is not None
        torch.nn.utils.clip_grad_norm_(model.parameters(), settings.clip_norm)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(total / (WINDOWS * SEQ_LEN))
    return losses


@dataclass
class ZeroOutcome:
    """Hold what one DeepSpeed run of all ranks measured.

    Attributes:
        applied, nan_losses, probes: of four more steps, the second with an infinite weight on one rank only: whether
            the update was applied, the loss, and afterwards the loss of one window.
    """

    losses: list[float]
    optimizer_elements: int
    padding_elements: int
    num_trained: int
    shared_is_one_object: bool
    bank_dtypes: list[str]
    bank_with_gradient: int
    wire_bytes: list[WireBytes]
    applied: list[bool]
    nan_losses: list[float]
    probes: list[float]


def train_under_zero(config: JobConfig, is_flat: bool) -> ZeroOutcome:
    """Train with this process group's ranks, two windows each, counting what they send."""
    model = build_model(config)
    wire = WireMeter(model.bank.buffers())
    with wire.installed():
        return _train_and_count(config, model, wire, is_flat)


def _train_and_count(config: JobConfig, model: LanguageModel, wire: WireMeter, is_flat: bool) -> ZeroOutcome:
    from rcdist.train.engine import Engine

    num_trained = sum(p.numel() for p in model.parameters())
    engine = Engine(model, config, world_size=dist.get_world_size(), device=torch.device("cpu"), is_flat=is_flat)
    losses, sent = [], []
    wire.take()
    wire.looks_inside = True
    for step in range(NUM_STEPS):
        result = engine.train_step(
            own_batches(step),
            WINDOWS * SEQ_LEN,
            learning_rate=learning_rate_at(step, NUM_STEPS, config.optimizer, config.schedule),
            weight_decay=config.optimizer.weight_decay,
        )
        assert result.applied
        losses.append(result.loss_nats)
        sent.append(wire.take())
    elements, padding = count_optimizer_state(engine, config.train.zero_stage)
    bank = model.bank
    users = [block.mlgru.c_proj for block in model.blocks[1:2]] + [block.glu.gate_proj for block in model.blocks[1:2]]
    buffers = list(bank.buffers())
    return ZeroOutcome(
        losses,
        elements,
        padding,
        num_trained,
        all(user.__dict__["bank"].matrix(user.key) is bank.matrix(user.key) for user in users),
        sorted({str(buffer.dtype) for buffer in buffers}),
        sum(buffer.requires_grad or buffer.grad is not None for buffer in buffers),
        sent,
        *_train_through_nan(engine),
    )


def count_optimizer_state(engine: Any, stage: int) -> tuple[int, int]:
    """Return the moment elements over all ranks without ZeRO's padding, and the padding."""
    states = engine._optimizer.state.values()
    local = sum(state[name].numel() for state in states for name in ("exp_avg", "exp_avg_sq"))
    padding = 0
    if stage == 3:
        parameters = list(engine.module.parameters())
        padding = sum(p.partition_numel() * dist.get_world_size() - p.ds_numel for p in parameters)
    sums = torch.tensor([local, sum(engine._engine.optimizer.groups_padding) if stage in (1, 2) else 0])
    if stage > 0:
        dist.all_reduce(sums)
    padding = 2 * (padding + int(sums[1]))
    return int(sums[0]) - padding, padding


def own_batches(step: int) -> list[MicroBatch]:
    """Return this rank's windows of a step, one by one."""
    share = WINDOWS // dist.get_world_size()
    first = dist.get_rank() * share
    return [micro_batch(row[None]) for row in windows(step)[first : first + share]]


def _train_through_nan(engine: Any) -> tuple[list[bool], list[float], list[float]]:
    applied, losses, probes = [], [], []
    for step in range(4):
        batches = own_batches(step)
        if step == 1 and dist.get_rank() == 0:
            batches[0].weights_BT[0, 3] = float("inf")
        result = engine.train_step(batches, WINDOWS * SEQ_LEN, learning_rate=1e-3, weight_decay=0.1)
        applied.append(result.applied)
        losses.append(result.loss_nats)
        probes.append(float(engine.evaluate_sum(micro_batch(windows(0)[:1]))))
    return applied, losses, probes


def read_health(config: JobConfig) -> list[dict[str, float]]:
    """Read the health, change one weight's sign on every rank, read again, then damage a frozen byte on rank 1."""
    from rcdist.train.engine import Engine
    from rcdist.train.health import Health

    model = build_model(config)
    engine = Engine(model, config, world_size=dist.get_world_size(), device=torch.device("cpu"))
    health = Health(engine, model.bank)
    batch = micro_batch(windows(0)[:1])
    readings = [health.read(batch)]
    engine.train_step(own_batches(0), WINDOWS * SEQ_LEN, learning_rate=0.1, weight_decay=0.1)
    readings.append(health.read(batch))
    if dist.get_rank() == 1:
        for buffer in model.bank.buffers():
            buffer.view(-1)[0] += 1
    readings.append(health.read(batch))
    readings.append({str(health.damage): 1.0})
    return readings


def run_named(name: str) -> Any:
    """Do what a name says, in one process of a group: bf16-3, flat_bf16-1, health-2, family-gate-f-ring-none."""
    from tests.train.family_worker import train_member

    kind, _, rest = name.partition("-")
    if kind == "family":
        return train_member(rest)
    stage = int(rest)
    if kind == "health":
        return read_health(job(stage, "bf16" if stage == 3 else "fp32"))
    settings: dict[str, dict[str, Any]] = {
        "nearest": {},
        "identity": {"rounding": "identity"},
        "bf16": {"precision": "bf16"},
        "recompute": {"activation_checkpointing": True},
    }
    arithmetic = kind.removeprefix("flat_")
    return train_under_zero(job(stage, **settings[arithmetic]), is_flat=kind != arithmetic)


def run_each(names: list[str]) -> dict[str, Any]:
    """Do everything named, in one process of a group."""
    return {name: run_named(name) for name in names}
