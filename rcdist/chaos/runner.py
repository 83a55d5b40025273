"""Run faults one after the other, and put what was found into a table."""

import statistics
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rcdist.chaos.context import Context
from rcdist.chaos.disk import NoDisk
from rcdist.chaos.faults import FAULTS, Fault
from rcdist.chaos.job import Job
from rcdist.chaos.local_cluster import LocalCluster
from rcdist.chaos.random_faults import draw, run_random
from rcdist.chaos.verdict import Verdict
from rcdist.checkpoint.find import find_checkpoints
from rcdist.checkpoint.manifest import read_manifest
from rcdist.config import JobConfig
from rcdist.errors import EXIT_DONE, ClusterError

_CPUS = 4
"""Slots of the shared cluster; not cores: a worker that was killed may hold its slot for some seconds."""


@dataclass
class Runner:
    """Hold what all faults share.

    Attributes:
        script: of the training job that is broken.
        storage: of every run.
        arguments: settings of every run.
        cluster: that faults share which need none of their own; None: RAY_ADDRESS, or a Ray of each job's own.
        is_local: whether faults that need a cluster of their own may start one.
    """

    script: Path
    storage: Path
    arguments: Sequence[str]
    cluster: LocalCluster | None
    is_local: bool = True

    def run_unbroken(self) -> tuple[JobConfig, Path]:
        """Train once without a fault; return the settings of that run and the folder of its tokens.

        Raises:
            ClusterError: it fails.
        """
        job = Job(self.script, self.cluster, self.storage, "unbroken", self.arguments)
        ended = job.run()
        if ended.code != EXIT_DONE:
            raise ClusterError(
                "run", "unbroken", f"exit code {ended.code}: {ended.output[-2000:]}", "Make it run first"
            )
        config = job.config()
        manifest = read_manifest(find_checkpoints(config.run_dir)[0])
        return config, config.dataset_dir / f"tokens-{manifest.data_digest[:16]}"

    def run_fault(self, name: str, repeat: int, unbroken: JobConfig, corpus: Path) -> Verdict:
        """Make one fault happen once."""
        fault, verdict = FAULTS[name], Verdict(name)
        if fault.nodes is not None and not self.is_local:
            verdict.failures.append("needs a cluster of its own: leave --address out")
            return verdict

        def run() -> None:
            with self._cluster_of(fault) as cluster:
                job = Job(self.script, cluster, self.storage, f"{name}-{repeat}", self.arguments)
                fault.run(Context(job, verdict, unbroken, corpus))

        return _timed(verdict, run)

    def run_drawn(self, seed: int, unbroken: JobConfig, corpus: Path) -> Verdict:
        """Break a run by the faults that a seed draws."""
        strikes, verdict = draw(seed), Verdict(f"seed {seed}")
        verdict.fault += f": {', '.join(map(str, strikes))}"
        job = Job(self.script, self.cluster, self.storage, f"random-{seed}", self.arguments)
        return _timed(verdict, lambda: run_random(Context(job, verdict, unbroken, corpus), strikes))

    @contextmanager
    def _cluster_of(self, fault: Fault) -> Iterator[LocalCluster | None]:
        if fault.nodes is None:
            yield self.cluster
            return
        cluster = LocalCluster(fault.nodes, fault.object_store_bytes)
        try:
            yield cluster
        finally:
            cluster.stop()


def _timed(verdict: Verdict, run: Callable[[], None]) -> Verdict:
    """Run a fault; what it raises must not keep the others from being tried."""
    began = time.monotonic()
    try:
        run()
    except NoDisk as error:
        verdict.failures.append(str(error))
    except Exception:
        verdict.failures.append(traceback.format_exc())
    verdict.seconds = time.monotonic() - began
    return verdict


@contextmanager
def local_cluster() -> Iterator[LocalCluster]:
    """Give a cluster of one node on this machine."""
    cluster = LocalCluster(_CPUS)
    try:
        yield cluster
    finally:
        cluster.stop()


def run_faults(runner: Runner, names: Sequence[str], repeats: int, report: Callable[[str], None]) -> list[Verdict]:
    """Run the unbroken run once, then each fault `repeats` times."""
    unbroken, corpus = runner.run_unbroken()
    verdicts = []
    for name in names:
        for repeat in range(1, repeats + 1):
            verdict = runner.run_fault(name, repeat, unbroken, corpus)
            verdicts.append(verdict)
            report(f"{name} {repeat}/{repeats}: {'; '.join(verdict.failures) or 'ok'} ({verdict.seconds:.0f} s)")
    return verdicts


def run_drawn(runner: Runner, count: int, seed: int, report: Callable[[str], None]) -> list[Verdict]:
    """Run the unbroken run once, then one run for each of the seeds from `seed` on."""
    unbroken, corpus = runner.run_unbroken()
    verdicts = []
    for number in range(seed, seed + count):
        verdict = runner.run_drawn(number, unbroken, corpus)
        verdicts.append(verdict)
        report(f"{verdict.fault}: {'; '.join(verdict.failures) or 'ok'} ({verdict.seconds:.0f} s)")
        if verdict.failures:
            report(f"once more: --random 1 --seed {number}")
    return verdicts


def list_faults() -> str:
    """Return a table of all faults, as rcdist/chaos/README.md has it."""
    rows = [f"| `{name}` | {fault.what} | {fault.end} |" for name, fault in FAULTS.items()]
    return "\n".join(["| fault | what happens | how the run ends |", "|---|---|---|", *rows])


def format_table(verdicts: Sequence[Verdict]) -> str:
    """Return one line per fault: how many ended as they should, and seconds from the failure to the next step."""
    names = list(dict.fromkeys(verdict.fault for verdict in verdicts))
    width = max(len(name) for name in names)
    lines = [f"{'fault':{width}}  {'passed':>7}  {'recovery s, median (max)':>24}  the run must end so"]
    for name in names:
        own = [verdict for verdict in verdicts if verdict.fault == name]
        passed = sum(not verdict.failures for verdict in own)
        recovery = [seconds for verdict in own for seconds in verdict.recovery_s]
        text = f"{statistics.median(recovery):.1f} ({max(recovery):.1f})" if recovery else "-"
        lines.append(f"{name:{width}}  {passed:>3}/{len(own):<3}  {text:>24}  {FAULTS[name].end}")
    return "\n".join(lines)
