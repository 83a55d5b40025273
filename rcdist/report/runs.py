"""What a report is about: runs, as searches and MLflow give them, reduced to what is shown."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

REFERENCE = {
    "model/stored_parameters": (0.190, "-19 % parameters"),
    "model/train_flops": (0.099, "-9.9 % training"),
    "time/train_s": (0.099, "-9.9 % training"),
    "cost/usd": (0.099, "-9.9 % training"),
    "cost/device_s": (0.099, "-9.9 % training"),
    "model/prefill_flops": (0.080, "-8.0 % inference"),
    "model/decode_flops": (0.080, "-8.0 % inference"),
    "time/prefill_s": (0.080, "-8.0 % inference"),
    "time/decode_s": (0.080, "-8.0 % inference"),
}
"""By cost, what the reservoir paper (Shiratsuchi et al. 2025, arXiv:2512.23145, abstract) claims to save of it."""

LABELS = {
    "eval/bits_per_byte": "held-out bits per byte",
    "eval/loss_nats": "held-out loss, nats per token",
    "eval/perplexity": "held-out perplexity",
    "cost/usd": "training cost, USD",
    "cost/device_s": "training cost, device seconds",
    "model/stored_parameters": "stored parameters",
    "model/train_flops": "training FLOPs per token",
    "model/prefill_flops": "prefill FLOPs per token",
    "model/decode_flops": "decode FLOPs per token",
    "time/train_s": "training seconds per token",
    "time/prefill_s": "prefill seconds per token",
    "time/decode_s": "decode seconds per token",
}
"""What an axis says."""


@dataclass(frozen=True)
class CurvePoint:
    """Hold one evaluation: what had been used by then, and the quality."""

    tokens: float
    device_s: float
    usd: float
    quality: float


@dataclass(frozen=True)
class ReportRun:
    """Hold one run.

    Attributes:
        name: short, as it is shown in figures.
        plan: plan string.
        label: the plan and what else sets the run apart.
        status: finished, stopped, failed, infeasible, running.
        is_baseline: plan T.
        values: final metrics and costs by name.
        curve: evaluations in order.
        group: equal for runs that differ in their seeds only.
        seed: by which runs of two groups are paired.
        note: why it did not finish.
    """

    name: str
    plan: str
    label: str
    status: str
    is_baseline: bool
    values: Mapping[str, float]
    curve: Sequence[CurvePoint] = ()
    group: str = ""
    seed: int = 0
    note: str = ""
    picked: Mapping[str, str] = field(default_factory=dict)


def finished(runs: Sequence[ReportRun], names: Sequence[str]) -> list[ReportRun]:
    """Return the finished runs that have all of these values."""
    return [run for run in runs if run.status == "finished" and all(name in run.values for name in names)]


def find_baseline(runs: Sequence[ReportRun]) -> ReportRun | None:
    """Return the first baseline that is finished."""
    return next((run for run in runs if run.is_baseline and run.status == "finished"), None)


def change(value: float, base: float | None) -> str:
    """Write a value over a base as a change in per cent, nothing without a base."""
    return "" if not base else f"{value / base - 1:+.1%}"
