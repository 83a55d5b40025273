"""Read the trained weights out of a training checkpoint of any ZeRO stage."""

from pathlib import Path

import torch

from rcdist.train.checkpoint import Manifest
from rcdist.train.engine import ZERO_FOLDER, consolidate_stage_three
from rcdist.train.foreign import refuse_code

_MODEL_STATES = "mp_rank_00_model_states.pt"


def read_trained_weights(folder: Path, manifest: Manifest) -> dict[str, torch.Tensor]:
    """Return parameter name -> tensor on the CPU, as the forward pass used it: under bf16 the rounded copy.

    Stages 0-2 keep whole weights in rank 0's file, read without unpickling objects; stage 3 is put together from all
    shards.
    """
    if manifest.zero_stage == 3:
        refuse_code(folder)  # DeepSpeed's tool has no restriction
        return consolidate_stage_three(folder)
    state = torch.load(folder / ZERO_FOLDER / _MODEL_STATES, map_location="cpu", weights_only=True)
    return dict(state["module"])
