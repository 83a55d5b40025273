"""Energy: counted by the GPU's driver where it does so, else at the power stated in the price table."""

import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch

from rcdist.train.energy import EnergyCounter


def test_a_cpu_has_no_counter() -> None:
    counter = EnergyCounter(torch.device("cpu"))
    assert not counter.is_there and counter.take() == 0.0


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Stand for NVML, which needs a GPU: millijoules that only grow."""
    nvml = ModuleType("pynvml")
    nvml.readings = [1_000, 1_000, 3_500, 3_500]  # type: ignore[attr-defined]
    nvml.nvmlInit = lambda: None  # type: ignore[attr-defined]
    nvml.nvmlDeviceGetHandleByUUID = lambda uuid: uuid  # type: ignore[attr-defined]
    nvml.nvmlDeviceGetTotalEnergyConsumption = lambda handle: nvml.readings.pop(0)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid="1234"))
    return nvml


def test_joules_are_those_since_the_last_call(driver: ModuleType) -> None:
    counter = EnergyCounter(torch.device("cuda", 0))
    assert counter.is_there
    assert counter.take() == 2.5 and counter.take() == 0.0


def test_a_gpu_that_does_not_say_its_energy_has_no_counter(driver: ModuleType) -> None:
    driver.readings.clear()  # the call raises, as NVML's does where it is not supported
    counter = EnergyCounter(torch.device("cuda", 0))
    assert not counter.is_there and counter.take() == 0.0
