"""Read the trained weights out of a training checkpoint of any ZeRO stage."""

import contextlib
import io
import os
from pathlib import Path

import torch

from rcdist.checkpoint.find import Found
from rcdist.checkpoint.manifest import ZERO_FOLDER
from rcdist.checkpoint.untrusted import admitted

_MODEL_STATES = "mp_rank_00_model_states.pt"


def read_trained_weights(found: Found) -> dict[str, torch.Tensor]:
    """Return parameter name -> tensor on the CPU, as the forward pass used it: under bf16 the rounded copy.

    Stages 0-2 keep whole weights in rank 0's file, read without unpickling objects; stage 3 is put together from all
    shards.
    """
    if found.manifest.zero_stage == 3:
        with admitted(found) as copy:  # DeepSpeed's tool unpickles without any restriction
            return _consolidate(copy.folder)
    state = torch.load(found.folder / ZERO_FOLDER / _MODEL_STATES, map_location="cpu", weights_only=True)
    return dict(state["module"])


def _consolidate(folder: Path) -> dict[str, torch.Tensor]:
    """Put the weights of a stage 3 checkpoint together from every rank's shard, float32, on the CPU."""
    os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")
    # It reports its progress on stdout, where a job prints its result.
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

        weights: dict[str, torch.Tensor] = get_fp32_state_dict_from_zero_checkpoint(str(folder), tag=ZERO_FOLDER)
    return weights
