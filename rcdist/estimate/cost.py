"""What a model costs, matrix by matrix: parameters, FLOPs and the bytes that a pass reads."""

from dataclasses import asdict
from typing import Any

from rcdist.config import JobConfig
from rcdist.model.cost import MatrixCost, count_parameters, estimate_flops, list_matrices
from rcdist.tracking.progress import draw

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
