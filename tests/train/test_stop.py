"""What driver and workers tell each other through files: an error that no retry mends, the wish to stop."""

from pathlib import Path

import pytest

from rcdist.errors import BudgetError, DivergedError, RcdistError
from rcdist.train.stop import clear_stop, is_stop_requested, read_stop, request_stop, write_stop


@pytest.mark.parametrize(
    "error",
    [
        BudgetError("cost.budget_usd", 1.5, "used up", "Raise it"),
        DivergedError("divergence.max_rollbacks", 2, "no better", "Lower it"),
    ],
)
def test_an_error_comes_back_as_it_was(tmp_path: Path, error: RcdistError) -> None:
    assert read_stop(tmp_path) is None
    write_stop(tmp_path, error)
    found = read_stop(tmp_path)
    assert type(found) is type(error)
    assert str(found) == str(error)
    clear_stop(tmp_path)
    assert read_stop(tmp_path) is None


def test_a_request_is_seen_until_it_is_cleared(tmp_path: Path) -> None:
    assert not is_stop_requested(tmp_path)
    request_stop(tmp_path)
    assert is_stop_requested(tmp_path)
    clear_stop(tmp_path)
    assert not is_stop_requested(tmp_path)
