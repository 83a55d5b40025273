"""What a run takes on a node type: whether it fits, time and money, cheaper node types, other numbers of workers."""

import math
from dataclasses import replace
from typing import Any

from rcdist.cluster import Workers
from rcdist.config import CostConfig, JobConfig
from rcdist.data.corpora import PreparedData
from rcdist.errors import ClusterError
from rcdist.estimate.memory import USABLE, MemoryBytes, estimate_memory
from rcdist.estimate.speed import CPU_MFU, GPU_MFU, Speed, estimate_speed
from rcdist.estimate.wire import estimate_exchange
from rcdist.model.cost import count_parameters, estimate_flops
from rcdist.tracking.prices import PriceRow, list_node_types, resolve_price
from rcdist.tracking.progress import format_count, format_duration

IMPORTS_BYTES = 0.65e9
"""What the imports of a worker take on a CPU."""
_COUNTS = tuple(2**power for power in range(11))


def describe_run(config: JobConfig, workers: Workers, price: PriceRow) -> dict[str, Any]:
    """Say what a run will take; JSON-able.

    Returns:
        fits: whether one worker has room, at the settings' ZeRO stage; fits_at_stage: at each.
        memory: total_bytes of one worker and its parts, for micro_batch_windows: of auto the most that fit.
        wire_bytes_per_step: of one worker.
        tokens_per_s: low and high; hours and usd: to the end of the run, of the middle of the two.
        cheapest: node type that fits with so many workers at the least money; None: none does.
        scaling: the same for 1 to 1024 workers.
        memory_bytes_per_worker: weights, gradients and optimizer states alone.
        least_s, least_usd: at the stated peak of the devices; what a run reaches of it is perf/mfu.
    """
    least_s = _least_s(config, workers, price)
    windows = fitting_windows(config, workers, price)
    memory, speed = estimate_memory(config, workers, windows), estimate_speed(config, workers, price)
    seconds = _seconds(config, speed)
    return {
        "workers": workers.num_workers,
        "device": "GPU" if workers.use_gpu else "CPU",
        "node_type": price.name,
        "fits": fits(memory, price),
        "fits_at_stage": {
            str(stage): fits(estimate_memory(at_stage(config, stage), workers, windows), price) for stage in range(4)
        },
        "memory": memory.describe(),
        "device_memory_bytes": None if math.isinf(price.memory_bytes) else price.memory_bytes,
        "micro_batch_windows": windows,
        "wire_bytes_per_step": estimate_exchange(config, workers).handed_bytes,
        "tokens_per_s": {"low": speed.low, "high": speed.high},
        "hours": seconds / 3600,
        "usd": seconds * workers.num_workers * price.usd_per_device_s,
        "cheapest": find_cheapest(config, workers),
        "scaling": [_scaled(config, workers, price, count) for count in _COUNTS],
        "memory_bytes_per_worker": memory.weights + memory.gradients + memory.optimizer,
        "least_s": least_s,
        "least_usd": least_s * workers.num_workers * price.usd_per_device_s,
        "usd_per_device_hour": price.usd_per_device_hour,
        "price": f"{price.name}, {price.market}",
    }


def check_fits(config: JobConfig, workers: Workers, price: PriceRow) -> None:
    """Refuse what cannot fit.

    Raises:
        ClusterError: names what it takes, what the device has, and what would fit.
    """
    memory = estimate_memory(config, workers, fitting_windows(config, workers, price))
    if fits(memory, price):
        return
    total, found = memory.describe()["total_bytes"], find_cheapest(config, workers)
    cheapest = f"; cost.node_type={found['node_type']} would do" if found else ""
    raise ClusterError(
        "cost.node_type",
        price.name,
        f"a worker takes {total / 1e9:.1f} GB, the device has {price.memory_bytes / 1e9:.1f} and "
        f"{_room(price) / 1e9:.1f} to plan with",
        f"Use a smaller train.micro_batch_size, activation_checkpointing, a higher zero_stage, more workers{cheapest}",
    )


def fits(memory: MemoryBytes, price: PriceRow) -> bool:
    """Say whether one worker has room, with some to spare."""
    return memory.describe()["total_bytes"] <= _room(price)


def _room(price: PriceRow) -> float:
    return price.memory_bytes * USABLE - (0.0 if price.is_gpu else IMPORTS_BYTES)


def at_stage(config: JobConfig, stage: int) -> JobConfig:
    """Return the same run at another ZeRO stage."""
    return config.model_copy(update={"train": config.train.model_copy(update={"zero_stage": stage})})


def fitting_windows(config: JobConfig, workers: Workers, price: PriceRow) -> int:
    """Return the windows of a micro-batch: those of the settings, for auto the most that fit, one at least."""
    per_worker = -(-config.windows_per_step // workers.num_workers)
    if config.train.micro_batch_size != "auto":
        return min(config.train.micro_batch_size, per_worker)
    most = max((65536 if workers.use_gpu else 2048) // config.data.seq_len, 1)
    windows = min(most, per_worker)
    while windows > 1 and not fits(estimate_memory(config, workers, windows), price):
        windows -= 1
    return windows


def find_cheapest(config: JobConfig, workers: Workers) -> dict[str, Any] | None:
    """Return the node type of the price table that fits at the least money, with as many workers of the same kind."""
    found: list[dict[str, Any]] = []
    for name in list_node_types(config.cost):
        cost = CostConfig(**config.cost.model_dump() | {"node_type": name, "peak_flops": None})
        price = resolve_price(cost, None, config.cluster.cpus_per_worker)
        if price.is_gpu != workers.use_gpu:
            continue
        if fits(estimate_memory(config, workers, fitting_windows(config, workers, price)), price):
            seconds = _seconds(config, estimate_speed(config, workers, price))
            usd = seconds * workers.num_workers * price.usd_per_device_s
            found.append({"node_type": name, "usd": usd, "hours": seconds / 3600})
    return min(found, key=lambda each: float(each["usd"]), default=None)


def _least_s(config: JobConfig, workers: Workers, price: PriceRow) -> float:
    flops = estimate_flops(config.architecture, activation_checkpointing=config.train.activation_checkpointing)
    total = config.train.steps * flops.hardware * config.train.global_batch_tokens
    return total / (price.peak_flops * workers.num_workers)


def _seconds(config: JobConfig, speed: Speed) -> float:
    return config.train.steps * config.train.global_batch_tokens / ((speed.low + speed.high) / 2)


def _scaled(config: JobConfig, workers: Workers, price: PriceRow, count: int) -> dict[str, Any]:
    others = replace(workers, num_workers=count, min_workers=None)
    speed = estimate_speed(config, others, price)
    seconds = _seconds(config, speed)
    return {
        "workers": count,
        "fits": fits(estimate_memory(config, others, fitting_windows(config, others, price)), price),
        "tokens_per_s": {"low": speed.low, "high": speed.high},
        "efficiency": speed.efficiency,
        "hours": seconds / 3600,
        "usd": seconds * count * price.usd_per_device_s,
    }


def format_run(config: JobConfig, workers: Workers, price: PriceRow, data: PreparedData | None = None) -> str:
    """Describe in a few lines what is about to run; without `data` the corpus is left out."""
    # Not describe_run: every start prints this, and has no use for other node types and numbers of workers.
    memory = estimate_memory(config, workers, fitting_windows(config, workers, price))
    states, total = memory.weights + memory.gradients + memory.optimizer, memory.describe()["total_bytes"]
    least_s, counts = _least_s(config, workers, price), count_parameters(config.architecture)
    device = "GPU" if workers.use_gpu else "CPU"
    flops = estimate_flops(config.architecture)
    at_least = f"{workers.min_workers} to " if workers.min_workers else ""
    tokens = f"{config.train.steps} steps of {config.train.global_batch_tokens:,} tokens"
    corpus = f"{data.train.num_tokens:,} training tokens, {data.validation.num_tokens:,} held out, " if data else ""
    return (
        f"{config.name}: plan {config.reservoir.plan}, {at_least}{workers.num_workers} {device} workers, "
        f"ZeRO stage {config.train.zero_stage}, {config.train.precision}\n"
        f"parameters: {counts.stored:,} stored, {counts.trained:,} trained, {counts.frozen_unique:,} frozen "
        f"({counts.frozen:,} as applied)\n"
        f"FLOPs per token: {format_count(flops.train)} training, {format_count(flops.prefill)} inference\n"
        f"memory per worker: {states / 2**20:,.0f} MiB of weights, gradients and optimizer, "
        f"about {total / 2**20:,.0f} MiB at most\n"
        f"data: {corpus}{tokens}\n"
        f"cost: {price.usd_per_device_hour:g} USD per device hour ({price.name}, {price.market}); at least "
        f"{format_duration(least_s)} and {least_s * workers.num_workers * price.usd_per_device_s:.2g} USD at peak speed"
    )


def format_forecast(config: JobConfig, workers: Workers, price: PriceRow) -> str:
    """Draw memory, speed, money and scaling as plain text."""
    from rich import box
    from rich.table import Table

    from rcdist.tracking.progress import draw

    run = describe_run(config, workers, price)
    memory = run["memory"]
    parts = ", ".join(
        f"{name.removesuffix('_bytes')} {value / 1e9:.2f}" for name, value in memory.items() if name != "total_bytes"
    )
    has = "" if run["device_memory_bytes"] is None else f" of {run['device_memory_bytes'] / 1e9:.0f}"
    stages = ", ".join(f"{stage} {'fits' if it else 'does not'}" for stage, it in run["fits_at_stage"].items())
    share = GPU_MFU if workers.use_gpu else CPU_MFU
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("workers", "fits", "tokens/s, low", "high", "per worker, over one", "hours", "USD"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in run["scaling"]:
        table.add_row(
            str(row["workers"]),
            "yes" if row["fits"] else "no",
            format_count(row["tokens_per_s"]["low"]),
            format_count(row["tokens_per_s"]["high"]),
            f"{row['efficiency']:.2f}",
            f"{row['hours']:.3g}",
            f"{row['usd']:.3g}",
        )
    cheapest = run["cheapest"]
    return "\n".join(
        [
            f"on {price.name}: {memory['total_bytes'] / 1e9:.2f}{has} GB a worker at most ({parts}), micro-batches of "
            f"{run['micro_batch_windows']} windows; ZeRO stage {stages}",
            f"on the wire: {run['wire_bytes_per_step']:,} bytes per step and worker, 0 of them frozen",
            f"speed: {format_count(run['tokens_per_s']['low'])} to {format_count(run['tokens_per_s']['high'])} "
            f"tokens/s, at {share[0]:.0%} to {share[1]:.0%} of the stated peak; in the middle {run['hours']:.3g} "
            f"hours, {run['usd']:.3g} USD",
            f"cheapest that fits: {cheapest['node_type']}, {cheapest['usd']:.3g} USD" if cheapest else "nothing fits",
            "",
            draw(table),
        ]
    )
