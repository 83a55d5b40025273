"""Weak scaling: whole runs with more and more workers, each with as many windows, beside what the estimate says."""

import json
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch

from rcdist.cluster import planned_workers
from rcdist.config import JobConfig
from rcdist.config.cli import config_from_dict, dump_config, read_config
from rcdist.estimate.memory import estimate_memory
from rcdist.estimate.speed import estimate_speed
from rcdist.estimate.wire import estimate_exchange
from rcdist.tracking.jsonl import MetricsLog
from rcdist.tracking.prices import resolve_price
from rcdist.train.deepspeed_config import max_windows

_FIRST = 5
"""Steps that are not timed: graphs are captured in them."""


class _Windows(NamedTuple):
    """Hold how many windows a worker's step and a micro-batch of it have."""

    of_step: int
    of_micro_batch: int


def measure_scaling(
    script: Path,
    preset: str,
    numbers: Sequence[int],
    stages: Sequence[int],
    windows: int,
    micro_batch: int,
    device: torch.device,
    steps: int = 16,
) -> dict[str, Any]:
    """Train a preset on made-up text with each number of workers at each ZeRO stage; blocks.

    Args:
        script: of the training job.
        preset: name or file of the settings; text, tokenizer and length of the run are ours.
        numbers: of workers.
        stages: of ZeRO.
        windows: of a worker's step.
        micro_batch: windows of a micro-batch.
        device: where.
        steps: of a run.

    Returns:
        By stage and number, `measured` and `predicted`: tokens per second and worker, over that of the first number
        (`efficiency`), bytes that a worker hands to collectives per step, peak bytes of a worker, and, measured only,
        bytes of frozen values per step, seconds from a worker's start to its first step, and that it waits for a
        checkpoint.
    """
    found: dict[str, Any] = {}
    base = read_config(["--config", preset], "scaling", presets=script.with_name("configs"))
    for stage in stages:
        for number in numbers:
            # A folder for each: a checkpoint of 1.3b is 19 GB.
            with tempfile.TemporaryDirectory() as folder:
                config = _settings(base, Path(folder), stage, number, _Windows(windows, micro_batch), steps, device)
                row = found[f"stage {stage}, {number} workers"] = _run(script, config)
            # A run may take minutes, and one that fails must not cost what the others have found.
            print(f"stage {stage}, {number} workers: {json.dumps(row)}", file=sys.stderr, flush=True)
    for stage in stages:
        first = found[f"stage {stage}, {numbers[0]} workers"]
        for number in numbers:
            for kind, row in found[f"stage {stage}, {number} workers"].items():
                row["efficiency"] = row["tokens_per_s"] / first[kind]["tokens_per_s"]
    return {"scaling": found}


def _write_text(path: Path, words: int) -> str:
    chosen = random.Random(0)
    lines = (" ".join(chosen.choices(("it", "was", "a", "truth"), k=100)) for _ in range(words // 100))
    path.write_text("\n".join(lines))
    return str(path)


def _settings(
    preset: JobConfig,
    folder: Path,
    stage: int,
    number: int,
    windows: _Windows,
    steps: int,
    device: torch.device,
) -> JobConfig:
    is_gpu = device.type == "cuda"
    base = preset.model_dump(mode="json")
    data = {
        "train": [_write_text(folder / "train.txt", 400_000)],
        "validation": [_write_text(folder / "validation.txt", 4_000)],  # a run ends with an evaluation of all of it
        "streaming": False,
        "seq_len": base["data"]["seq_len"],
    }
    train = base["train"] | {
        "steps": steps,
        "zero_stage": stage,
        "micro_batch_size": windows.of_micro_batch,
        "global_batch_tokens": number * windows.of_step * base["data"]["seq_len"],
        "log_every_steps": 1,
    }
    if not is_gpu:
        train["precision"] = "fp32"
    cores = os.cpu_count() or 1
    tree = {
        "name": f"scaling-{stage}-{number}",
        "storage_path": str(folder),
        "model": base["model"],
        "reservoir": base["reservoir"],
        "tokenizer": {"kind": "bytes"},
        "data": data,
        "train": train,
        "cluster": {"num_workers": number, "use_gpu": is_gpu, "cpus_per_worker": min(1.0, cores / number)},
        "checkpoint": {"every_steps": steps - 2, "keep_latest": 1},
        "evaluate": {"every_steps": None, "max_tokens": 256, "yardsticks": False},
        "tracking": {"health_every_steps": None},
    }
    return config_from_dict(tree, JobConfig)


def _run(script: Path, config: JobConfig) -> dict[str, dict[str, float]]:
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        file.write(dump_config(config))
        file.flush()
        # What it says goes to stderr at once: it may take minutes, and stdout is the result's alone.
        subprocess.run([sys.executable, script, "--config", file.name], stdout=sys.stderr.fileno(), check=True)
    records = [record.metrics for record in MetricsLog(config.run_dir).read() if "perf/step_s" in record.metrics]
    number = planned_workers(config).num_workers
    timed = records[_FIRST:]
    measured = {
        "tokens_per_s": median(row["perf/tokens_per_s"] for row in timed) / number,
        "bytes_per_step": timed[-1]["wire/bytes_per_step"],
        "frozen_bytes_per_step": max(row.get("wire/frozen_bytes_per_step", 0.0) for row in records),
        "peak_bytes": max(row["memory/peak_bytes"] for row in records),
        "startup_s": records[-1]["cost/startup_device_s"] / number,
        "checkpoint_s": records[-1]["cost/checkpoint_device_s"] / number,
    }
    return {"measured": measured, "predicted": _predict(config)}


def _predict(config: JobConfig) -> dict[str, float]:
    """Return what the estimate says; of its range of speeds the middle, whose ratio is what scaling is about."""
    workers = planned_workers(config)
    price = resolve_price(
        config.cost, torch.cuda.get_device_name() if workers.use_gpu else None, workers.cpus_per_worker
    )
    windows = max_windows(config, if_auto=1)
    speed = estimate_speed(config, workers, price)
    return {
        "tokens_per_s": (speed.low + speed.high) / 2 / workers.num_workers,
        "bytes_per_step": float(estimate_exchange(config, workers).handed_bytes),
        "peak_bytes": float(estimate_memory(config, workers, windows).describe()["total_bytes"]),
    }
