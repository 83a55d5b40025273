"""Arms are timed in pairs with their baseline; what is its own baseline has the ratio 1."""

from pathlib import Path

import pytest

from rcdist.study.timing import KINDS, measure_times
from tests.study.small import small_study


@pytest.mark.slow
def test_an_arm_is_timed_against_its_baseline(tmp_path: Path) -> None:
    config = small_study(tmp_path)
    base = config.run_config("T", 0)
    found, device, name = measure_times(config.run_config("U", 0), base, 3)
    assert set(found) == {f"{kind}/{part}" for kind in KINDS for part in ("ratio", "low", "high", "seconds")}
    assert device == "cpu" and name
    assert all(found[f"{kind}/low"] <= found[f"{kind}/ratio"] <= found[f"{kind}/high"] for kind in KINDS)
    own, _, _ = measure_times(base, base, 3)
    assert [own[f"{kind}/ratio"] for kind in KINDS] == [1.0, 1.0, 1.0]
    assert all(own[f"{kind}/seconds"] > 0 for kind in KINDS)
