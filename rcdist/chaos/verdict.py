"""Judge a run that was broken: its end, the data it saw, its losses against the unbroken run's, its record."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

from rcdist.config import JobConfig
from rcdist.data.order import locate
from rcdist.data.shards import TokenCorpus
from rcdist.tracking.jsonl import MetricsLog
from rcdist.tracking.mlflow_runs import read_runs
from rcdist.tracking.samples import ReadStep, read_samples, surviving

RESIZED_TOLERANCE = 2e-3
"""Share by which a loss may differ after another number of workers has added up the gradients in another order."""


@dataclass
class Verdict:
    """Hold what was found.

    Attributes:
        fault: its name.
        failures: what is not as the table says; empty when all is.
        recovery_s: seconds from the last step before a failure to the next step, of each.
        seconds: that the fault took in all.
    """

    fault: str
    failures: list[str] = field(default_factory=list)
    recovery_s: list[float] = field(default_factory=list)
    seconds: float = 0.0

    def expect(self, holds: bool, what: str) -> None:
        """Note a failure unless it holds."""
        if not holds:
            self.failures.append(what)

    def judge_run(
        self,
        config: JobConfig,
        corpus: Path,
        unbroken: JobConfig | None,
        *,
        tolerance: float = 0.0,
        until: int | None = None,
    ) -> None:
        """Look at everything that a run leaves behind.

        Args:
            config: of the run.
            corpus: folder of its training tokens.
            unbroken: the run whose losses must be met; None: they may differ.
            until: the last step of which that is asked; None: of all.
            tolerance: share by which they may; 0: bit for bit. MLflow keeps the first value of a step that was done
                twice, which may differ from the second's by as much.
        """
        steps = range(1, config.train.steps + 1)
        attempts = read_samples(config.run_dir)
        self._judge_data(config, corpus, steps, attempts)
        counts = Counter(step for attempt in attempts for step in attempt)
        wanted = [step for step in steps if step % config.train.log_every_steps == 0]
        records = MetricsLog(config.run_dir).read()
        found = [record.step for record in records]
        self.expect(found == sorted(set(found)) and set(found) >= set(wanted), f"records of steps {found}")
        losses = {r.step: r.metrics["train/loss_nats"] for r in records}
        if unbroken is not None:
            expected = {r.step: r.metrics["train/loss_nats"] for r in MetricsLog(unbroken.run_dir).read()}
            same = [step for step in wanted if until is None or step <= until]
            far = [s for s in same if not _close(losses.get(s, math.nan), expected[s], tolerance)]
            self.expect(not far, f"losses differ from the unbroken run's at steps {far}")
        runs = read_runs(config.tracking_uri, config.tracking.experiment, config.name, "train/loss_nats")
        self.expect(len(runs) == 1, f"{len(runs)} MLflow runs")
        for run in runs:
            self.expect(run.status == "FINISHED", f"MLflow status {run.status}, not FINISHED")
            points = {point.step: point.value for point in run.history}
            stored = [point.step for point in run.history]
            self.expect(stored == found, f"MLflow has steps {stored}, not {found}")
            far = [
                step
                for step, loss in losses.items()
                if step in points and not _close(points[step], loss, tolerance if counts[step] > 1 else 0.0)
            ]
            self.expect(not far, f"MLflow's losses are not those of metrics.jsonl at steps {far}")

    def _judge_data(
        self, config: JobConfig, corpus: Path, wanted: Sequence[int], attempts: list[dict[int, ReadStep]]
    ) -> None:
        history = surviving(attempts)
        self.expect(sorted(history) == list(wanted), f"samples of steps {sorted(history)}")
        size = TokenCorpus(corpus, config.model.vocab_size).num_windows(config.data.seq_len)
        each = config.windows_per_step
        wrong = [
            step
            for step in history
            if history[step].samples
            != sorted(locate(cursor, size, config.data.seed) for cursor in range((step - 1) * each, step * each))
        ]
        self.expect(not wrong, f"steps {wrong} did not read their windows once each")
        ended = [steps for steps in attempts if steps]
        for before, after in pairwise(ended):
            self.recovery_s.append(after[min(after)].time - before[max(before)].time)


def _close(found: float, expected: float, tolerance: float) -> bool:
    if math.isnan(expected):
        return math.isnan(found)
    return found == expected or abs(found - expected) <= tolerance * abs(expected)
