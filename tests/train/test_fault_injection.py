"""The short form of a fault, and that nothing happens without one."""

import math
from pathlib import Path

import pytest
import torch

from rcdist.data.loader import MicroBatch
from rcdist.errors import ConfigError
from rcdist.train.fault_injection import VARIABLE, FaultInjector, InjectedFault


def batch() -> MicroBatch:
    ids = torch.zeros(1, 4, dtype=torch.int64)
    return MicroBatch(ids, ids, ids.bool(), torch.ones(1, 4))


def test_reads_the_short_form() -> None:
    assert InjectedFault.parse("kill:optimizer:7") == InjectedFault("kill", "optimizer", 7, 7, 0)
    assert InjectedFault.parse("spike:batch:20-28:1") == InjectedFault("spike", "batch", 20, 28, 1)


@pytest.mark.parametrize("text", ["", "kill", "kill:batch:3", "nan:forward:3", "kill:forward:x", "kill:forward:1:2:3"])
def test_refuses_anything_else(text: str) -> None:
    with pytest.raises(ConfigError, match=r"kill:forward"):
        InjectedFault.parse(text)


def test_changes_the_named_steps_of_the_named_rank_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "nan:batch:3-4:1")
    faults = FaultInjector(tmp_path, rank=1)
    changed = [bool(faults.change([batch()], step)[0].weights_BT.isnan().all()) for step in range(1, 7)]
    assert changed == [False, False, True, True, False, False]
    assert not math.isnan(float(FaultInjector(tmp_path, rank=0).change([batch()], 3)[0].weights_BT.sum()))


def test_without_the_variable_nothing_happens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    faults = FaultInjector(tmp_path, rank=0)
    batches = [batch()]
    assert faults.change(batches, 1) is batches
    faults.strike("forward", 1)
    assert not list(tmp_path.iterdir())
