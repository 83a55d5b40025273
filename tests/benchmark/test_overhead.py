"""A whole run and a bare loop are timed over the same steps."""

import pytest
import torch

from rcdist.benchmark.overhead import measure_overhead
from tests.conftest import ROOT


@pytest.mark.exhaustive
def test_overhead_of_one_pair() -> None:
    found = measure_overhead(ROOT / "jobs" / "pretrain.py", 1, 1, torch.device("cpu"), steps=30)
    assert found["median_s"]["run"] > 0 and found["median_s"]["bare"] > 0
    assert 0 <= found["data_wait_share"]["median"] < 1
