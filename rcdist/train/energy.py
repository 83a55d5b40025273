"""What the GPU of this worker draws, counted by its driver (NVML)."""

import contextlib
import logging
from typing import Any

import torch

logger = logging.getLogger("rcdist")


class EnergyCounter:
    """Read the energy counter of a GPU: of its whole board, host and cooling left out.

    GPUs older than Volta, slices of a GPU (MIG), CPUs, and machines without `nvidia-ml-py` (extra `gpu`) have none:
    then a run counts the power stated in the price table.

    Args:
        device: where the model trains.
    """

    def __init__(self, device: torch.device) -> None:
        self._handle, self._nvml = _open(device)
        self._last = self._read() if self._handle is not None else 0

    @property
    def is_there(self) -> bool:
        """Return whether there is a counter."""
        return self._handle is not None

    def take(self) -> float:
        """Return the joules since the last call, 0.0 without a counter. Cost: some microseconds."""
        if self._handle is None:
            return 0.0
        last, self._last = self._last, self._read()
        return max(self._last - last, 0) / 1000

    def _read(self) -> int:
        """Return millijoules since the driver was loaded."""
        return int(self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._handle))


def _open(device: torch.device) -> tuple[Any, Any]:
    """Return a handle of the GPU that answers for its energy, and NVML; None, None where there is none."""
    if device.type != "cuda":
        return None, None
    with contextlib.suppress(Exception):  # no package, no library, no permission, not supported: all mean the same
        import pynvml

        pynvml.nvmlInit()
        # By its UUID: NVML does not know CUDA_VISIBLE_DEVICES, by which Ray gives every worker its own GPU.
        handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(device).uuid}")
        pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
        return handle, pynvml
    return None, None
