"""Say when the money, the device seconds or the wall time that a run is allowed are used up."""

import math
import time

from rcdist.config import JobConfig
from rcdist.errors import BudgetError
from rcdist.tracking.ledger import Ledger

BUDGETS = (None, "cost.budget_usd", "cost.budget_device_s", "train.max_wall_s")
"""What can be used up, by the number that rank 0 sends."""


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
