"""What MLflow has of a study: by arm its runs, paired by seed with those of its baseline, and its times."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from rcdist.errors import ConfigError
from rcdist.report.statistics import Difference, area_under_curve, mean_interval, paired_difference
from rcdist.study.settings import StudyConfig
from rcdist.study.timing import KINDS
from rcdist.tracking.connect import refusing
from rcdist.tracking.mlflow import check_server
from rcdist.tracking.mlflow_runs import TrackedRun, find_study

QUALITY = "eval/bits_per_byte"
PAIRS = "evaluate/blimp/accuracy"
COST = "cost/device_s"
_TEXT = "evaluate/{}/bits_per_byte"
_HISTORIES = (QUALITY, "train/tokens")

Curve = Sequence[tuple[float, float]]
"""(tokens, bits per byte) of the held-out text at each evaluation."""


@dataclass(frozen=True)
class Times:
    """Hold the time of a kind of pass: over the baseline's, with its 95 % interval, and in seconds per token."""

    ratio: float
    low: float
    high: float
    seconds: float


PARTS = tuple(field.name for field in fields(Times))
"""What is kept of each time."""


@dataclass(frozen=True)
class ArmResult:
    """Hold what an arm came to.

    Attributes:
        name: of the arm.
        baseline: arm that it is compared with; its own name: it is one.
        plan: of its first run.
        parameters: stored, trained and unique (frozen) by name; a checkpoint has the trained ones.
        values: by metric, by seed.
        curves: by seed.
        times: by device (cuda, cpu) and kind of pass.
        device_s: of all its runs, by the clock.
    """

    name: str
    baseline: str
    plan: str
    parameters: Mapping[str, float]
    values: Mapping[str, Mapping[int, float]]
    curves: Mapping[int, Curve]
    times: Mapping[str, Mapping[str, Times]]
    device_s: float

    def mean(self, metric: str) -> Difference | None:
        """Return a metric's mean over the seeds, None if no run has it."""
        found = list(self.values.get(metric, {}).values())
        return mean_interval(found) if found else None

    def to(self, other: "ArmResult", metric: str, *, relative: bool = True) -> Difference | None:
        """Return the paired difference of a metric to another arm, as a share of the other's unless `relative` is
        false; None without common seeds."""
        own, base = self.values.get(metric, {}), other.values.get(metric, {})
        common = sorted(own.keys() & base.keys())
        if not common or self.name == other.name:
            return None
        if relative:
            return mean_interval([own[seed] / base[seed] - 1 for seed in common])
        return paired_difference([own[seed] for seed in common], [base[seed] for seed in common])

    def over_tokens(self, other: "ArmResult") -> list[tuple[float, Difference]]:
        """Return the relative difference of held-out bits per byte to another arm after each number of tokens."""
        common = sorted(self.curves.keys() & other.curves.keys())
        if not common or self.name == other.name:
            return []
        own = [dict(self.curves[seed]) for seed in common]
        base = [dict(other.curves[seed]) for seed in common]
        tokens = set.intersection(*({*a} & {*b} for a, b in zip(own, base, strict=True)))
        return [
            (count, mean_interval([a[count] / b[count] - 1 for a, b in zip(own, base, strict=True)]))
            for count in sorted(tokens)
        ]

    def areas(self, other: "ArmResult", device: str) -> tuple[float, float] | None:
        """Return AUCC of this arm and of another one (Shen et al. 2021, arXiv:2012.15045, section 4.1).

        The area under the curve of held-out bits per byte over training time, up to the time that the faster one takes,
        divided by its width; the mean over common seeds. None where times or curves are missing.
        """
        common = sorted(self.curves.keys() & other.curves.keys())
        own, base = self.times.get(device, {}).get("train"), other.times.get(device, {}).get("train")
        if own is None or base is None or not common:
            return None
        rates = own.ratio * base.seconds, base.seconds
        found: list[tuple[float, float]] = []
        for seed in common:
            curves = self.curves[seed], other.curves[seed]
            limit = min(curve[-1][0] * rate for curve, rate in zip(curves, rates, strict=True))
            both = [area_under_curve(curve, rate, limit) for curve, rate in zip(curves, rates, strict=True)]
            if both[0] is not None and both[1] is not None:
                found.append((both[0], both[1]))
        if not found:
            return None
        return sum(a for a, _ in found) / len(found), sum(b for _, b in found) / len(found)


@dataclass(frozen=True)
class StudyResult:
    """Hold a study: its arms in their order, the texts that they were measured on, and the devices by kind."""

    name: str
    arms: Mapping[str, ArmResult]
    texts: Sequence[str]
    devices: Mapping[str, str]

    def baseline_of(self, arm: ArmResult) -> ArmResult | None:
        """Return the arm that one is compared with, None for a baseline, or if it has no run yet."""
        return None if arm.baseline == arm.name else self.arms.get(arm.baseline)


def read_study(config: StudyConfig) -> StudyResult:
    """Return what MLflow has of a study by now; unfinished runs are left out.

    Raises:
        ConfigError: the store does not answer, or has no study of this name.
    """
    uri, experiment = config.tracking_uri, config.tracking.experiment
    check_server(uri, experiment, config.tracking.timeout_s)
    with refusing(uri):
        found = find_study(uri, experiment, config.name, _HISTORIES)
    if found is None:
        rule = f"the experiment {experiment!r} has no study of that name"
        raise ConfigError("name", config.name, rule, "Train it first, or name the MLflow that has it: tracking.uri")
    parent, children = found
    by_arm: dict[str, dict[int, TrackedRun]] = {}
    for run in children:
        if run.status == "FINISHED" and QUALITY in run.metrics:
            by_arm.setdefault(run.tags.get("study/arm", ""), {})[int(run.tags.get("study/seed", 0))] = run
    arms = {arm: _to_result(arm, config.baseline_of(arm), by_arm[arm], parent) for arm in config.arms if arm in by_arm}
    prefix = "time/"
    devices = {key.removeprefix(prefix): name for key, name in parent.tags.items() if key.startswith(prefix)}
    return StudyResult(config.name, arms, list(config.study.texts), devices)


def _to_result(arm: str, baseline: str, runs: Mapping[int, TrackedRun], parent: TrackedRun) -> ArmResult:
    first = runs[min(runs)]
    prefix = "cost.parameters."
    metrics = {
        name for run in runs.values() for name in run.metrics if name.startswith(("eval/", "evaluate/")) or name == COST
    }
    return ArmResult(
        name=arm,
        baseline=baseline,
        plan=first.params.get("reservoir.plan", ""),
        parameters={k.removeprefix(prefix): float(v) for k, v in first.params.items() if k.startswith(prefix)},
        values={
            name: {seed: run.metrics[name] for seed, run in sorted(runs.items()) if name in run.metrics}
            for name in sorted(metrics)
        },
        curves={seed: _read_curve(run) for seed, run in sorted(runs.items())},
        times={device: found for device in ("cuda", "cpu") if (found := _read_times(parent, device, arm))},
        device_s=sum(run.metrics.get(COST, 0.0) for run in runs.values()),
    )


def _read_curve(run: TrackedRun) -> list[tuple[float, float]]:
    tokens = dict(run.histories.get("train/tokens", ()))
    return [(tokens[step], value) for step, value in run.histories.get(QUALITY, ()) if step in tokens]


def _read_times(parent: TrackedRun, device: str, arm: str) -> dict[str, Times]:
    found = {}
    for kind in KINDS:
        parts: dict[str, Any] = {part: parent.metrics.get(f"time/{device}/{arm}/{kind}/{part}") for part in PARTS}
        if None not in parts.values():
            found[kind] = Times(**parts)
    return found


def text_metric(name: str) -> str:
    """Return the metric of a held-out text."""
    return _TEXT.format(name)
