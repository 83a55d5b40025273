"""Which budget is used up, and what the error says."""

import pytest

from rcdist.config import JobConfig
from rcdist.tracking.ledger import Ledger
from rcdist.train.budget import BUDGETS, budget_error, find_used_up


@pytest.mark.parametrize(
    ("settings", "deadline", "expected"),
    [
        ({}, float("inf"), None),
        ({"cost": {"budget_usd": 2.0}}, float("inf"), None),
        ({"cost": {"budget_usd": 1.0}}, float("inf"), "cost.budget_usd"),
        ({"cost": {"budget_device_s": 50.0}}, float("inf"), "cost.budget_device_s"),
        ({"cost": {"budget_device_s": 50.1}}, float("inf"), None),
        ({"train": {"max_wall_s": 9.0}}, 0.0, "train.max_wall_s"),
    ],
)
def test_names_what_is_used_up(settings: dict, deadline: float, expected: str | None) -> None:
    ledger = Ledger(device_s=50.0, usd=1.0)
    assert BUDGETS[int(find_used_up(JobConfig(**settings), ledger, deadline))] == expected


def test_the_error_says_what_was_used_and_how_to_go_on() -> None:
    config = JobConfig(cost={"budget_usd": 1.0})
    error = budget_error(config, "cost.budget_usd", 7, Ledger(device_s=50.0, usd=1.25))
    assert error.exit_code == 4
    assert str(error).startswith("cost.budget_usd=1.0: used up at step 7 of ")
    assert "1.25 USD and 50 device seconds" in str(error)
