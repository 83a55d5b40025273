"""What a fault is given, and what faults have in common."""

import json
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils._pytree import tree_leaves

from rcdist.chaos.job import Ended, Job
from rcdist.chaos.local_cluster import LocalCluster
from rcdist.chaos.verdict import Verdict
from rcdist.checkpoint.find import checkpoint_name, find_checkpoints
from rcdist.checkpoint.manifest import MANIFEST, ZERO_FOLDER
from rcdist.checkpoint.untrusted import expected_classes
from rcdist.config import JobConfig
from rcdist.tracking.jsonl import MetricsLog
from rcdist.train.events import EVENTS


@dataclass
class Context:
    """Hold what a fault is given.

    Attributes:
        job: where the run happens.
        verdict: takes what is found.
        unbroken: the same run without a fault.
        corpus: folder of its training tokens.
    """

    job: Job
    verdict: Verdict
    unbroken: JobConfig
    corpus: Path

    @property
    def run_dir(self) -> Path:
        """Return the folder of the run."""
        return self.job.config().run_dir

    @property
    def cluster(self) -> LocalCluster:
        """Return the cluster, where the fault asked for one of its own."""
        assert self.job.cluster is not None
        return self.job.cluster

    def expect_end(self, ended: Ended, code: int, *words: str) -> None:
        """Expect an exit code, words in the output, and no traceback of the job's own."""
        tail = "\n".join(ended.output.splitlines()[-12:])
        self.verdict.expect(ended.code == code, f"exit code {ended.code}, not {code}: {tail}")
        for word in words:
            self.verdict.expect(word in ended.output, f"no {word!r} in the output: {tail}")
        bare = [line for line in ended.output.splitlines() if line.startswith(("Traceback", "*** SIG"))]
        self.verdict.expect(not bare, f"a traceback in the output: {tail}")

    def judge(self, *more: str, is_same: bool = True, tolerance: float = 0.0, until: int | None = None) -> None:
        """Judge the finished run; is_same: its losses are the unbroken run's, up to step `until`."""
        unbroken = self.unbroken if is_same else None
        self.verdict.judge_run(self.job.config(*more), self.corpus, unbroken, tolerance=tolerance, until=until)

    def expect_same_tensors(self, step: int, other: int) -> None:
        """Expect weights and optimizer of one step to be those of another, bit for bit."""
        folders = [self.run_dir / checkpoint_name(number) / ZERO_FOLDER for number in (step, other)]
        names = [sorted(path.name for path in folder.glob("*optim_states.pt")) for folder in folders]
        self.verdict.expect(names[0] == names[1] != [], f"steps {step} and {other} have the files {names}")
        for name in set(names[0]) & set(names[1]):
            one, two = (tree_leaves(_load(folder / name)) for folder in folders)
            tensors = [(a, b) for a, b in zip(one, two, strict=True) if isinstance(a, torch.Tensor)]
            same = all(torch.equal(a, b) for a, b in tensors)
            self.verdict.expect(same and len(tensors) > 2, f"{name} of step {step} is not that of step {other}")

    def expect_metrics(self, **expected: float) -> None:
        """Expect values of train/... in the last record."""
        last = MetricsLog(self.run_dir).read()[-1].metrics
        found = {name: last[f"train/{name}"] for name in expected}
        self.verdict.expect(found == expected, f"{found}, not {expected}")

    @staticmethod
    def wait(process: subprocess.Popen[str], holds: Callable[[], bool], timeout_s: float = 150.0) -> bool:
        """Wait until a condition holds or the job ends; return whether it holds."""
        deadline = time.monotonic() + timeout_s
        while not (held := holds()) and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        return held

    def events(self) -> list[str]:
        """Return the names of the run's events, in order."""
        path = self.run_dir / EVENTS
        return [json.loads(line)["event"] for line in path.read_text().splitlines()] if path.exists() else []

    def stop_at(self, step: int) -> list[Path]:
        """Start the job, kill its driver after the checkpoint of a step, and return the checkpoints, newest first."""
        process = self.job.start()
        self.verdict.expect(self.job.wait_for_step(process, step), f"step {step} was not reached")
        self.job.kill_driver(process)
        return [folder for folder in find_checkpoints(self.run_dir) if (folder / MANIFEST).exists()]


def _load(path: Path) -> Any:
    with torch.serialization.safe_globals(expected_classes()):
        return torch.load(path, map_location="cpu", weights_only=True)
