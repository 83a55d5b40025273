"""Prove that a checkpoint of unknown origin holds data only, before DeepSpeed unpickles it without any restriction."""

import pickle
import struct
from pathlib import Path

from torch.serialization import get_unsafe_globals_in_checkpoint

from rcdist.errors import CheckpointError

_EXPECTED = {
    "deepspeed.runtime.fp16.loss_scaler.LossScaler",
    "deepspeed.runtime.zero.config.ZeroStageEnum",
    "deepspeed.utils.tensor_fragment.fragment_address",
}
"""Classes whose instances DeepSpeed puts into its files; making one runs nothing else."""


def refuse_code(folder: Path) -> None:
    """Disassemble every pickle below `folder`, running nothing. Cost: the tensors are not read.

    Every name that a pickle may call must be one of those that torch's own restricted unpickler allows, or of
    _EXPECTED; opcodes that could name something in another way are refused as such.

    Raises:
        CheckpointError: a file names something else, or is not what torch.save writes.
    """
    for path in sorted(folder.rglob("*.pt")):
        try:
            unsafe = sorted(set(get_unsafe_globals_in_checkpoint(path)) - _EXPECTED)
            reason = f"names {', '.join(unsafe)}" if unsafe else None
        except (pickle.UnpicklingError, ValueError, RuntimeError, EOFError, struct.error, IndexError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        if reason is not None:
            raise CheckpointError(
                "checkpoint",
                path,
                f"holds more than tensors ({reason}), and would run it",
                "Use a checkpoint whose origin you know, as a run of the same name and storage",
            )
