"""ModelConfig and ReservoirConfig: what the model is, and what of it is frozen and shared."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from rcdist.plan import LETTERS, MAX_BLOCKS, RESERVOIR_LETTER, parse_plan


class Section(BaseModel):
    """Refuse unknown keys, inf and nan in every section."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True, validate_default=True, allow_inf_nan=False)


def _check_letters(value: Any) -> Any:
    legal = LETTERS + RESERVOIR_LETTER
    for letter in value if isinstance(value, dict) else ():
        if letter not in legal:
            raise ValueError(f"unknown matrix letter {letter!r}. Letters: {' '.join(legal)}")
    return value


Positive = Annotated[float, Field(gt=0)]
PerLetter = Annotated[Positive | dict[str, Positive], AfterValidator(_check_letters)]
Probability = Annotated[float, Field(gt=0, le=1)]
ProbabilityPerLetter = Annotated[Probability | dict[str, Probability], AfterValidator(_check_letters)]


def per_letter(value: Any, letter: str, default: Any) -> Any:
    """Look a matrix letter up in a setting that is one value or a map by letter.

    Args:
        value: the setting, one value or `{letter: value}`.
        letter: one of f c g o G U D, or r for an inserted reservoir.
        default: what a map that does not name the letter means.
    """
    return value.get(letter, default) if isinstance(value, dict) else value


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


class ReservoirConfig(Section):
    """What is frozen and shared, and how a frozen matrix is made (MODEL: the reservoir family)."""

    plan: str = "T cG@a"
    """Plan string, tiled over the blocks: T, or letters out of f c g o G U D, then =, @name, +r, *n."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Seed of the frozen matrices; independent of the training seed."""
    topology: Literal["dense"] = "dense"
    """Structure of a frozen matrix. dense: independent ternary entries."""
    connectivity: ProbabilityPerLetter = 0.5
    """Share of non-zero entries of a frozen matrix, in (0, 1]; one value or a map by letter."""
    input_scaling: PerLetter = 1.0
    """Gain of frozen input matrices (f, c, g, G, U, and o, D) relative to unit gain; one value or a map by letter."""
    spectral_radius: Annotated[float, Field(gt=0, le=10)] = 1.0
    """Spectral radius of the square matrix of an inserted reservoir layer."""
    gain: bool = True
    """A frozen matrix has a trained per-channel output gain (one per block, also where the matrix is shared)."""
    placement: Literal["post_scan"] = "post_scan"
    """Where an inserted reservoir layer (+r) sits. post_scan: on the states, before the readout."""
    combine: Literal["replace", "add"] = "replace"
    """replace: the reservoir's output takes the place of h in the readout; add: it is added to h."""
    source: Literal["broadcast", "regenerate"] = "broadcast"
    """broadcast: workers get the packed bytes from the object store; regenerate: each makes them from the seed."""

    @model_validator(mode="after")
    def _normalise_plan(self) -> "ReservoirConfig":
        self.plan = str(parse_plan(self.plan))
        return self
