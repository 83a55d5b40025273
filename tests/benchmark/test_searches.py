"""A search and a bare loop are timed over the same trials."""

import pytest

from rcdist.benchmark.searches import measure_search
from tests.conftest import ROOT


@pytest.mark.exhaustive
def test_trials_per_hour_of_one_pair() -> None:
    found = measure_search(ROOT / "jobs" / "sweep.py", 1, steps=2)
    assert set(found["trials_per_hour"]) == {"search", "loop"}
    assert found["search_over_loop"]["ratio"]["median"] > 0
