"""What a configuration costs before it runs: parameters, FLOPs, bytes, memory, the least time and money."""

from dataclasses import asdict
from typing import Any

from rcdist.cluster import Workers
from rcdist.config import JobConfig
from rcdist.data.corpora import PreparedData
from rcdist.model.cost import MatrixCost, count_parameters, estimate_flops, list_matrices
from rcdist.tracking.prices import PriceRow
from rcdist.tracking.progress import draw, format_count, format_duration
from rcdist.train.deepspeed_config import has_flat_steps

_COLUMNS = ("matrix", "shape", "blocks", "distinct", "weights stored", "train FLOPs", "decode FLOPs", "bytes read")


def describe_cost(config: JobConfig) -> dict[str, Any]:
    """Count what a model costs; JSON-able.

    Returns:
        parameters: stored, trained, frozen (summed over the blocks that apply them), unique (every frozen matrix once).
        flops_per_token: train, hardware (with what activation checkpointing computes again), prefill, decode.
        bytes_per_pass: weight bytes that one forward pass reads, a shared matrix once per block: 4 or 2 per trained
            weight by train.precision, 1 per frozen one or sign, 4 per index of a permutation.
        matrices: the same per group of equal matrices.
    """
    counts = count_parameters(config.architecture)
    flops = estimate_flops(config.architecture, activation_checkpointing=config.train.activation_checkpointing)
    groups = [_describe_group(name, rows, config) for name, rows in _group(config).items()]
    return {
        "parameters": {
            "stored": counts.stored,
            "trained": counts.trained,
            "frozen": counts.frozen,
            "unique": counts.frozen_unique,
        },
        "flops_per_token": asdict(flops),
        "bytes_per_pass": sum(group["bytes_per_pass"] for group in groups),
        "matrices": groups,
    }


def format_cost(config: JobConfig) -> str:
    """Draw what `describe_cost` counts as plain text, shares in per cent of the whole model."""
    from rich import box
    from rich.table import Table

    cost = describe_cost(config)
    stored, flops = cost["parameters"]["stored"], cost["flops_per_token"]
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in _COLUMNS:
        table.add_column(name, justify="left" if name == "matrix" else "right", no_wrap=True)
    for group in cost["matrices"]:
        table.add_row(
            group["matrix"],
            "{} x {}".format(*group["shape"]),
            str(group["num_applied"]),
            str(group["num_distinct"]),
            _share(group["weights"], stored),
            _share(group["train_flops"], flops["train"]),
            _share(group["decode_flops"], flops["decode"]),
            _share(group["bytes_per_pass"], cost["bytes_per_pass"]),
        )
    rest = stored - sum(group["weights"] for group in cost["matrices"])
    table.add_row("embedding, norms, gains", "", "", "", _share(rest, stored), "", "", "")
    lines = [draw(table), ""]
    counts = cost["parameters"]
    lines.append(
        f"plan {config.reservoir.plan}: {stored:,} parameters stored, {counts['trained']:,} trained, "
        f"{counts['unique']:,} frozen ({counts['frozen']:,} as applied)"
    )
    lines.append(
        f"FLOPs per token: {flops['train']:,} training, {flops['prefill']:,} prefill, {flops['decode']:,} decode; "
        f"{cost['bytes_per_pass']:,} bytes of weights per pass"
    )
    return "\n".join(lines).strip("\n")


def describe_run(config: JobConfig, workers: Workers, price: PriceRow) -> dict[str, Any]:
    """Say what a run will take; JSON-able.

    Returns:
        memory_bytes_per_worker: weights, gradients and optimizer states; activations come on top.
        least_s, least_usd: at the stated peak of the devices; what a run reaches of it is perf/mfu.
    """
    flops = estimate_flops(config.architecture, activation_checkpointing=config.train.activation_checkpointing)
    total = config.train.steps * flops.hardware * config.train.global_batch_tokens
    least_s = total / (price.peak_flops * workers.num_workers)
    return {
        "workers": workers.num_workers,
        "device": "GPU" if workers.use_gpu else "CPU",
        "memory_bytes_per_worker": round(_state_bytes(config, workers)),
        "least_s": least_s,
        "least_usd": least_s * workers.num_workers * price.usd_per_device_s,
        "usd_per_device_hour": price.usd_per_device_hour,
        "price": f"{price.name}, {price.market}",
    }


def format_run(config: JobConfig, workers: Workers, price: PriceRow, data: PreparedData | None = None) -> str:
    """Describe in a few lines what is about to run; without `data` the corpus is left out."""
    run, counts = describe_run(config, workers, price), count_parameters(config.architecture)
    flops = estimate_flops(config.architecture)
    at_least = f"{workers.min_workers} to " if workers.min_workers else ""
    tokens = f"{config.train.steps} steps of {config.train.global_batch_tokens:,} tokens"
    corpus = f"{data.train.num_tokens:,} training tokens, {data.validation.num_tokens:,} held out, " if data else ""
    return (
        f"{config.name}: plan {config.reservoir.plan}, {at_least}{workers.num_workers} {run['device']} workers, "
        f"ZeRO stage {config.train.zero_stage}, {config.train.precision}\n"
        f"parameters: {counts.stored:,} stored, {counts.trained:,} trained, {counts.frozen_unique:,} frozen "
        f"({counts.frozen:,} as applied)\n"
        f"FLOPs per token: {format_count(flops.train)} training, {format_count(flops.prefill)} inference\n"
        f"memory per worker: {run['memory_bytes_per_worker'] / 2**20:,.0f} MiB of weights, gradients and optimizer\n"
        f"data: {corpus}{tokens}\n"
        f"cost: {price.usd_per_device_hour:g} USD per device hour ({run['price']}); at least "
        f"{format_duration(run['least_s'])} and {run['least_usd']:.2g} USD at peak speed"
    )


def _state_bytes(config: JobConfig, workers: Workers) -> float:
    """Estimate one worker's model states in bytes: 16 per trained weight less what ZeRO partitions, 1 per frozen.

    On a GPU with graphs gradients are whole float32 sums, and rounded weights are kept, as codes and in their dtype.
    """
    counts, stage, share = count_parameters(config.architecture), config.train.zero_stage, 1 / workers.num_workers
    weight = gradient = 2.0 if config.train.precision == "bf16" else 4.0
    if workers.use_gpu and has_flat_steps(config):
        moments = 8.0 + (4.0 if config.train.precision == "bf16" or stage else 0.0)
        per_weight = weight + 4.0 + moments * (share if stage else 1.0) + 1.0 + weight
        return per_weight * counts.trained + counts.frozen_unique
    moments = 8.0 + (4.0 if config.train.precision == "bf16" or stage else 0.0)
    per_weight = (
        weight * (share if stage >= 3 else 1.0)
        + gradient * (share if stage >= 2 else 1.0)
        + moments * (share if stage >= 1 else 1.0)
    )
    return per_weight * counts.trained + counts.frozen_unique


def _group(config: JobConfig) -> dict[str, list[MatrixCost]]:
    """Collect applications that differ in their block only."""
    groups: dict[str, list[MatrixCost]] = {}
    for row in list_matrices(config.architecture):
        share = row.key.partition("@")[2]
        name = row.letter + (f" frozen, {row.spec.topology}" if row.spec else " trained")
        name += f", shared as {share}" if share else ""
        groups.setdefault(name, []).append(row)
    return groups


def _describe_group(name: str, rows: list[MatrixCost], config: JobConfig) -> dict[str, Any]:
    distinct: dict[str, int] = {row.key: row.num_weights for row in rows}
    bytes_per_trained = 2 if config.train.precision == "bf16" else 4
    return {
        "matrix": name,
        "shape": list(rows[0].shape),
        "num_applied": len(rows),
        "num_distinct": len(distinct),
        "weights": sum(distinct.values()),
        "train_flops": sum(row.train_flops for row in rows),
        "decode_flops": sum(row.forward_flops for row in rows),
        "bytes_per_pass": sum(row.resident_bytes(bytes_per_trained) for row in rows),
    }


def _share(part: int, whole: int) -> str:
    return f"{part:,} ({part / whole:.1%})"
