"""What a fault is given, and what faults have in common."""

import json
from dataclasses import dataclass
from pathlib import Path

from rcdist.chaos.job import Ended, Job
from rcdist.chaos.local_cluster import LocalCluster
from rcdist.chaos.verdict import Verdict
from rcdist.checkpoint.find import find_checkpoints
from rcdist.checkpoint.manifest import MANIFEST
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
        bare = [line for line in ended.output.splitlines() if line.startswith("Traceback")]
        self.verdict.expect(not bare, f"a traceback in the output: {tail}")

    def judge(self, *more: str, is_same: bool = True, tolerance: float = 0.0) -> None:
        """Judge the finished run; is_same: its losses are the unbroken run's."""
        unbroken = self.unbroken if is_same else None
        self.verdict.judge_run(self.job.config(*more), self.corpus, unbroken, tolerance=tolerance)

    def expect_metrics(self, **expected: float) -> None:
        """Expect values of train/... in the last record."""
        last = MetricsLog(self.run_dir).read()[-1].metrics
        found = {name: last[f"train/{name}"] for name in expected}
        self.verdict.expect(found == expected, f"{found}, not {expected}")

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
