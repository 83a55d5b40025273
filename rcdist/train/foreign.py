"""Prove that a checkpoint of unknown origin holds data only, before DeepSpeed unpickles it without any restriction."""

import pickle
from pathlib import Path
from typing import Any

import torch
from torch.serialization import safe_globals

from rcdist.errors import CheckpointError


class _Inert:
    """Stand for a class of DeepSpeed's whose instances it puts into its files: takes anything and does nothing."""

    def __new__(cls, *_: object, **__: object) -> "_Inert":
        return super().__new__(cls)


_EXPECTED = (
    "deepspeed.runtime.fp16.loss_scaler.LossScaler",
    "deepspeed.runtime.zero.config.ZeroStageEnum",
    "deepspeed.utils.tensor_fragment.fragment_address",
)


def refuse_code(folder: Path) -> None:
    """Read every pickle below `folder` with torch's restricted unpickler, which runs nothing. Cost: one read.

    Raises:
        CheckpointError: a file names something else than tensors and DeepSpeed's own three classes.
    """
    allowed: list[Any] = [(type(name.rpartition(".")[2], (_Inert,), {}), name) for name in _EXPECTED]
    for path in sorted(folder.rglob("*.pt")):
        try:
            with safe_globals(allowed):
                torch.load(path, map_location="cpu", mmap=True, weights_only=True)
        except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
            reason = next(
                (line for line in str(error).splitlines() if "GLOBAL" in line or "rror" in line), "unreadable"
            )
            raise CheckpointError(
                "checkpoint",
                path,
                f"holds more than tensors ({reason.strip()[:200]}), and would run it",
                "Use a checkpoint whose origin you know, as a run of the same name and storage",
            ) from error
