"""Trials per hour: a search over a bare loop that starts one run after the other, each with the machine's workers."""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from rcdist.benchmark.pairs import ratio
from rcdist.config import JobConfig
from rcdist.config.cli import config_from_dict, dump_config

PLANS = ("c", "G", "o", "cG", "cgo")
"""What both arms train, after plan T."""


def measure_search(script: Path, pairs: int, steps: int = 40) -> dict[str, Any]:
    """Time a grid of six plans as whole processes, start to end, in turn; both train and evaluate the same.

    Args:
        script: of the search's job.
        pairs: runs of each arm.
        steps: of a trial, of 4,096 tokens.
    """
    seconds: dict[str, list[float]] = {"search": [], "loop": []}
    with tempfile.TemporaryDirectory() as folder:
        for i in range(pairs + 1):  # the first fills the cache of tokenised text
            for arm in ("search", "loop")[:: 1 if i % 2 == 0 else -1]:
                took = _time(arm, script, folder, f"{arm}-{i}", steps)
                if i:
                    seconds[arm].append(took)
    per_hour = {arm: [3600 * (len(PLANS) + 1) / took for took in times] for arm, times in seconds.items()}
    return {
        "trials_per_hour": {arm: sorted(found)[len(found) // 2] for arm, found in per_hour.items()},
        "search_over_loop": {"ratio": ratio(per_hour["search"], per_hour["loop"])},
    }


def _time(arm: str, script: Path, folder: str, name: str, steps: int) -> float:
    settings = _settings(folder, name, steps)
    if arm == "loop":
        command = [sys.executable, "-m", "rcdist.benchmark.searches", json.dumps(settings)]
    else:
        space = {"reservoir.plan": list(PLANS)}
        sweep = {"trials": None, "sampler": "grid", "stop_dominated": False}
        file = Path(folder) / f"{name}.yaml"
        file.write_text(dump_config(settings | {"space": space, "sweep": sweep, "cluster": {"num_workers": 1}}))
        command = [sys.executable, str(script), "--config", str(file)]
    began = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        print(done.stdout[-2000:], done.stderr[-4000:], sep="\n", file=sys.stderr)
    done.check_returncode()
    return time.monotonic() - began


def _settings(folder: str, name: str, steps: int) -> dict[str, Any]:
    return {
        "name": name,
        "storage_path": folder,
        "train": {"steps": steps},
        "checkpoint": {"every_steps": None},
        "evaluate": {"every_steps": max(steps // 4, 1), "yardsticks": False},
        "tracking": {"health_every_steps": None},
    }


def run_loop(settings: dict[str, Any]) -> None:
    """Run the plans one after the other in one Ray, as one would without a search."""
    from rcdist.cluster import ray_session
    from rcdist.launch import run

    with ray_session(JobConfig()):
        for i, plan in enumerate(("T", *PLANS)):
            own = {"name": f"{settings['name']}-{i}", "reservoir": {"plan": plan}}
            result = run(config_from_dict(settings | own))
            assert result.status == "FINISHED", result.error


if __name__ == "__main__":
    run_loop(json.loads(sys.argv[1]))
