"""Whole runs: the training job over a bare DeepSpeed loop, and how long a step of it waits for its data."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

import torch

from rcdist.benchmark.pairs import ratio
from rcdist.config import JobConfig
from rcdist.config.cli import dump_config
from rcdist.ports import free_port
from rcdist.tracking.jsonl import MetricsLog

_FIRST = 10
"""Steps that are not timed; a record is written every so many steps."""


def measure_overhead(script: Path, pairs: int, workers: int, device: torch.device, steps: int = 120) -> dict[str, Any]:
    """Time a step of the embedded defaults in the training job and in a bare loop, in turn, start-up apart.

    Args:
        script: of the training job.
        pairs: runs of each.
        workers: of a run.
        device: of the bare loop.
        steps: of a run.

    A run's step time is the wall time between two of its records over the steps between, so it has everything that
    happens between steps: loader, records, MLflow and, at step 100, a reading of the health.
    Evaluation and checkpoints are not in it: the bare loop has none.
    """
    runs: list[dict[str, float]] = []
    bare: list[float] = []
    with tempfile.TemporaryDirectory() as storage:
        _run_job(script, storage, "warm-up", workers, 3 * _FIRST)  # fills the cache of tokenised text
        for i in range(pairs):
            for arm in ("run", "bare")[:: 1 if i % 2 == 0 else -1]:
                if arm == "run":
                    runs.append(_run_job(script, storage, f"pair-{i}", workers, steps))
                else:
                    bare.append(_bare(workers, device, steps))
    seconds = [run["step_s"] for run in runs]
    waits = [run["data_wait_share"] for run in runs]
    return {
        "overhead": {"ratio": ratio(seconds, bare)},
        "data_wait_share": ratio(waits, [1.0] * len(waits)),
        "median_s": {"run": median(seconds), "bare": median(bare)},
    }


def _config(storage: str, name: str, workers: int, steps: int) -> JobConfig:
    return JobConfig(
        name=name,
        storage_path=storage,
        cluster={"num_workers": workers},
        train={"steps": steps},
        checkpoint={"every_steps": None},
        evaluate={"every_steps": None, "yardsticks": False},
    )


def _run_job(script: Path, storage: str, name: str, workers: int, steps: int) -> dict[str, float]:
    config = _config(storage, name, workers, steps)
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        file.write(dump_config(config))
        file.flush()
        _check(subprocess.run([sys.executable, script, "--config", file.name], capture_output=True, text=True))
    records = list(MetricsLog(config.run_dir).read())
    began = next(record for record in records if record.step == _FIRST)
    ended = records[-2]  # the last one waits for the evaluation at the end
    timed = [record.metrics for record in records if _FIRST < record.step <= ended.step]
    return {
        "step_s": (ended.timestamp_ms - began.timestamp_ms) / 1000 / (ended.step - began.step),
        "data_wait_share": sum(m["perf/data_wait_s"] for m in timed) / sum(m["perf/step_s"] for m in timed),
    }


def _bare(workers: int, device: torch.device, steps: int) -> float:
    port = free_port()
    config = _config(tempfile.gettempdir(), "bare", workers, steps).model_dump(mode="json")
    request = json.dumps({"config": config, "first": _FIRST, "device": device.type})
    started = []
    for rank in range(workers):
        ranks = {
            "RANK": rank,
            "LOCAL_RANK": rank,
            "WORLD_SIZE": workers,
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
        }
        environment = os.environ | {name: str(value) for name, value in ranks.items()} | {"OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "rcdist.benchmark.deepspeed_loop", request]
        started.append(
            subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        )
    outputs = [(process.communicate(), process) for process in started]
    done = [subprocess.CompletedProcess("bare", p.returncode, *texts) for texts, p in outputs]
    for process in done:
        _check(process)
    return float(done[0].stdout.split()[-1])


def _check(done: subprocess.CompletedProcess[str]) -> None:
    if done.returncode:
        print(done.stdout[-2000:], done.stderr[-4000:], sep="\n", file=sys.stderr)
    done.check_returncode()
