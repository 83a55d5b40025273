"""ModelConfig: shape and arithmetic of the model."""

from typing import Annotated, Literal

from pydantic import Field

from rcdist.config.plan import MAX_BLOCKS
from rcdist.config.section import PerLetter, Positive, Section


class ModelConfig(Section):
    """Shape and arithmetic of the model (Zhu et al. 2024, arXiv:2406.02528)."""

    num_layers: Annotated[int, Field(ge=1, le=MAX_BLOCKS)] = 4
    """Blocks L."""
    width: Annotated[int, Field(ge=8, le=65536)] = 256
    """Model width d, also the width of the recurrent state."""
    glu_width: Annotated[int, Field(ge=8, le=262144)] = 768
    """Inner width of the GLU."""
    vocab_size: Annotated[int, Field(ge=16, le=1_000_000)] = 4096
    """Rows of the embedding and of the head; the tokenizer must not have more."""
    norm: Literal["shared", "per_projection"] = "shared"
    """shared: one RMSNorm for all projections of one input; per_projection: each projection has a gain of its own."""
    readout_norm: Literal["gate", "state"] = "gate"
    """gate: RMSNorm on the output gate, SiLU on h (the public code); state: RMSNorm on h, SiLU on the gate."""
    norm_eps: Annotated[float, Field(gt=0, le=1e-2)] = 1e-6
    """Added to the mean square in every RMSNorm."""
    rounding: Literal["nearest", "identity"] = "nearest"
    """nearest: ternary weights and int8 activations; identity: no rounding, a control for tests and ablations."""
    embedding_init_std: Positive = 0.02
    """Standard deviation of the embedding at initialisation."""
    init_gain: PerLetter = {"f": 0.8, "c": 0.8, "g": 0.8, "o": 1.0, "G": 0.8, "U": 0.8, "D": 0.8}
    """Initial scale of trained matrices relative to unit gain (rms in = rms out); one value or a map by letter."""
    head_init_gain: Positive = 0.25
    """Initial scale of the head relative to unit gain."""
