"""What a fault works with: a cluster, a storage, and the training job as a process of its own."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rcdist.chaos.local_cluster import LocalCluster, kill_tree
from rcdist.checkpoint.find import checkpoint_name
from rcdist.checkpoint.manifest import MANIFEST
from rcdist.config import JobConfig
from rcdist.config.cli import read_config

STEPS = 24
SMALL = [
    *(
        "--model.num_layers=2 --model.width=64 --model.glu_width=128 --model.vocab_size=512 --data.seq_len=64 "
        "--train.global_batch_tokens=2048 --train.micro_batch_size=8 --train.log_every_steps=1 "
        "--evaluate.max_tokens=4096"
    ).split(),
    "--reservoir.plan=T cG@a",  # with weights that are frozen, to be sent and proved
]
"""A model of 150,000 parameters: a fault costs the start of the workers, not the training."""

_FIXED = (
    f"--train.steps={STEPS} --evaluate.every_steps=12 --evaluate.yardsticks=false --tracking.health_every_steps=8 "
    "--checkpoint.every_steps=4 --checkpoint.keep_latest=3 --tracking.log_samples=true"
).split()


@dataclass
class Ended:
    """Hold how a job has ended."""

    code: int
    output: str


@dataclass
class Job:
    """Hold where the fault happens.

    Attributes:
        script: of the training job.
        cluster: on this machine; None: the one of RAY_ADDRESS, or a Ray of the job's own.
        storage: of the runs.
        name: of the run.
        arguments: further settings.
        log: what the jobs printed.
    """

    script: Path
    cluster: LocalCluster | None
    storage: Path
    name: str
    arguments: Sequence[str] = ()
    log: list[str] = field(default_factory=list)
    _started: int = 0

    def __post_init__(self) -> None:
        self._outputs = self.storage / "output"  # also if the storage becomes a disk that is full

    def command_line(self, *more: str) -> list[str]:
        """Return the settings of the job; later ones win."""
        given = [*_FIXED, f"--storage_path={self.storage}", *self.arguments, f"--name={self.name}", *more]
        last = {argument.split("=")[0]: argument for argument in [*SMALL, *given]}
        return list(last.values())

    def config(self, *more: str) -> JobConfig:
        """Return the settings as the job reads them."""
        return read_config(self.command_line(*more), "chaos")

    def start(self, *more: str, environment: Mapping[str, str] | None = None) -> subprocess.Popen[str]:
        """Start the job; what it prints goes to a file, because nobody reads a pipe while a fault is made."""
        output = self._output()
        with output.open("w") as file:
            return subprocess.Popen(
                [sys.executable, str(self.script), *self.command_line(*more)],
                env=self._joined(environment),
                stdout=file,
                stderr=subprocess.STDOUT,
                text=True,
            )

    def python(self, program: str) -> subprocess.Popen[str]:
        """Start a Python program as another driver on the same cluster."""
        command, environment = [sys.executable, "-c", program], self._joined(None)
        environment["PYTHONPATH"] = str(self.script.parents[1])
        return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)

    def end(self, process: subprocess.Popen[str], timeout_s: float = 300.0) -> Ended:
        """Wait for the job."""
        late = ""
        try:
            process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            kill_tree(process)
            late = f"\nno end within {timeout_s:g} s"
        ended = Ended(process.returncode, self._output(0).read_text(errors="replace") + late)
        self.log.append(ended.output)
        return ended

    def output(self) -> str:
        """Return what the job that runs now has printed so far."""
        return self._output(0).read_text(errors="replace")

    def _output(self, which: int = 1) -> Path:
        """Return the file of the next job (1), or of the last one (0)."""
        self._started += which
        self._outputs.mkdir(parents=True, exist_ok=True)
        return self._outputs / f"{self.name}-{self._started}.txt"

    def _joined(self, environment: Mapping[str, str] | None) -> dict[str, str]:
        cluster = self.cluster.environment if self.cluster else {}
        return {**os.environ, **cluster, **(environment or {})}

    def run(self, *more: str, environment: Mapping[str, str] | None = None) -> Ended:
        """Start a job and wait for it."""
        return self.end(self.start(*more, environment=environment))

    def wait_for_step(self, process: subprocess.Popen[str], step: int, timeout_s: float = 240.0) -> bool:
        """Wait until the checkpoint of a step is in the storage; say whether it came before the job's end."""
        manifest = self.config().run_dir / checkpoint_name(step) / MANIFEST
        deadline = time.monotonic() + timeout_s
        while not manifest.exists():
            if process.poll() is not None or time.monotonic() > deadline:
                return False
            time.sleep(0.01)
        return True

    def kill_driver(self, process: subprocess.Popen[str]) -> None:
        """Kill the job's own process, not what it has started: that must end by itself."""
        process.send_signal(signal.SIGKILL)
        self.end(process)
