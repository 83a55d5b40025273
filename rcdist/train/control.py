"""Why training must save or end before its last step: budgets, pre-emption, the driver's request, errors of a rank."""

import json
import math
import time
import traceback
from dataclasses import dataclass
from pathlib import Path

import ray.train
import torch.distributed as dist

from rcdist import errors
from rcdist.checkpoint.find import find_checkpoints
from rcdist.checkpoint.mirror import RunMirror
from rcdist.config import JobConfig
from rcdist.errors import BudgetError, RcdistError, RetriesError
from rcdist.storage import read_json, try_write
from rcdist.tracking.ledger import Ledger
from rcdist.tracking.provenance import redact

BUDGETS = (None, "cost.budget_usd", "cost.budget_device_s", "train.max_wall_s")
"""What can be used up, by the number that rank 0 sends."""

STOP_ERROR = "stop.json"
"""File of a run with the error that ends it."""
STOP_REQUEST = "stop-requested"
"""File of a run by which the driver asks the workers to end it."""
_FAILURE = "worker-failure"

_NOTICE_EVERY_S = 5.0
"""Seconds between two checks for a pre-emption notice; clouds give 30 s or more."""
_STOP_EVERY_S = 1.0
"""Seconds between two checks for the driver's request to stop: the storage may be a slow mount."""


@dataclass(frozen=True)
class Interruption:
    """Hold what all ranks have agreed on after a step.

    Attributes:
        used_up: setting of the budget that is used up, None while none is.
        is_preempted: a node is about to be taken away, which was not known before.
        is_stopped: the driver asks the run to end.
    """

    used_up: str | None
    is_preempted: bool
    is_stopped: bool


class Interrupts:
    """Look for interruptions on rank 0, and let every rank know in the same step.

    Args:
        config: budgets.
        ledger: what was used.
        deadline: Unix time at which `train.max_wall_s` is over.
        rank: of this worker.
        has_notice: whether Ray Train would hear of a pre-emption.
    """

    def __init__(
        self, config: JobConfig, ledger: Ledger, deadline: float, rank: int, *, has_notice: bool = True
    ) -> None:
        self._config, self._ledger, self._deadline, self._rank = config, ledger, deadline, rank
        self._has_notice = has_notice
        self._noticed_at = self._stop_polled_at = time.monotonic()
        self._is_preempted = False

    def poll(self) -> tuple[float, float, float]:
        """Return numbers to be added up over the ranks: used-up budget, whether to check for a notice, stop."""
        if self._rank > 0:
            return 0.0, 0.0, 0.0
        now, is_stopped = time.monotonic(), False
        if now - self._stop_polled_at > _STOP_EVERY_S:
            self._stop_polled_at, is_stopped = now, is_stop_requested(self._config.run_dir)
        is_due = self._has_notice and now - self._noticed_at > _NOTICE_EVERY_S
        return find_used_up(self._config, self._ledger, self._deadline), float(is_due), float(is_stopped)

    def agree(self, sums: tuple[float, ...]) -> Interruption:
        """Return what the sums of `poll` mean; every rank calls it in every step."""
        budget, is_due, is_stopped = sums
        is_new = False
        if is_due:
            self._noticed_at = time.monotonic()
            # Ray gives every rank the same answer only if all ask in the same step.
            before, self._is_preempted = self._is_preempted, ray.train.get_preemption_info() is not None
            is_new = self._is_preempted and not before
        return Interruption(BUDGETS[round(budget)], is_new, is_stopped > 0)


def find_used_up(config: JobConfig, ledger: Ledger, deadline: float) -> float:
    """Return the place in BUDGETS of what is used up, 0 for nothing."""
    over = (
        ledger.usd >= (config.cost.budget_usd or math.inf),
        ledger.device_s >= (config.cost.budget_device_s or math.inf),
        time.time() >= deadline,
    )
    return float(over.index(True) + 1) if any(over) else 0.0


def budget_error(config: JobConfig, setting: str, step: int, ledger: Ledger) -> BudgetError:
    """Return the error that ends the run, once its checkpoint is saved."""
    section, name = setting.split(".")
    used = f"{ledger.usd:.6g} USD and {ledger.device_s:.0f} device seconds are used"
    return BudgetError(
        setting,
        getattr(getattr(config, section), name),
        f"used up at step {step} of {config.train.steps}: {used}; the checkpoint of that step is saved",
        "Raise it and run the same command to go on" if section == "cost" else "Run the same command to go on",
    )


def mirror_of(config: JobConfig) -> RunMirror:
    """Return what brings a run's small files from one node to another; where all see one folder it does nothing."""
    return RunMirror(config.bucket, config.run_prefix, config.run_dir)


def write_stop(run_dir: Path, error: RcdistError) -> None:
    """Write down an error that a restart of the workers would only repeat; of several ranks' the last one is kept.

    On a full disk nothing is written: then the workers are started again, and raise it again.
    """
    fields = {"class": type(error).__name__, "field": error.field, "rule": error.rule, "remedy": error.remedy}
    value = error.value if isinstance(error.value, str | int | float | bool | None) else str(error.value)
    try_write(run_dir / STOP_ERROR, json.dumps(fields | {"value": value}))


def stop_if_repeated(run_dir: Path, rank: int, error: Exception) -> None:
    """Stop a run whose workers meet the same error again with no checkpoint completed in between: a third try is vain.

    Errors of communication do not count: they follow from whatever took another worker away.
    """
    text = redact(f"{type(error).__name__}: {error}")[:2000]
    if isinstance(error, dist.DistError | ConnectionError) or "gloo" in text or "NCCL" in text:
        return
    path = run_dir / f"{_FAILURE}-{rank}.json"
    newest = next(iter(find_checkpoints(run_dir)), None)
    found = {"error": text, "checkpoint": newest.name if newest else None}
    if read_json(path) == found:
        report = run_dir / "failure.txt"
        try_write(report, redact("".join(traceback.format_exception(error))))
        rule = f"the workers failed with the same error again from {found['checkpoint'] or 'step 0'}: {text}"
        remedy = f"Read {report}; the same command goes on from the newest checkpoint"
        write_stop(run_dir, RetriesError("", None, rule, remedy))
    try_write(path, json.dumps(found))


def read_stop(run_dir: Path) -> RcdistError | None:
    """Return the error that was written down, None when there is none."""
    found = read_json(run_dir / STOP_ERROR)
    if not found:
        return None
    made: RcdistError = getattr(errors, found["class"])(found["field"], found["value"], found["rule"], found["remedy"])
    return made


def request_stop(run_dir: Path) -> None:
    """Ask the workers to save and end; the driver does so on SIGTERM."""
    (run_dir / STOP_REQUEST).touch()


def send_stop_request(config: JobConfig) -> None:
    """Ask the workers to save and end, on whatever nodes they are."""
    request_stop(config.run_dir)
    mirror_of(config).create(STOP_REQUEST)


def is_stop_requested(run_dir: Path) -> bool:
    """Return whether the driver has asked the run to end."""
    return (run_dir / STOP_REQUEST).exists()


def clear_stop(run_dir: Path) -> None:
    """Forget error and request, before a run is started again."""
    (run_dir / STOP_ERROR).unlink(missing_ok=True)
    (run_dir / STOP_REQUEST).unlink(missing_ok=True)
    for path in run_dir.glob(f"{_FAILURE}-*.json"):
        path.unlink()
