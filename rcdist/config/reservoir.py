"""ReservoirConfig: what is frozen, shared, inserted or left out, and how a frozen matrix is made."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from rcdist.config.plan import RESERVOIR_LETTER, parse_plan
from rcdist.config.section import PerLetter, Section, check_letters
from rcdist.errors import ConfigError

TOPOLOGY_NAMES = ("dense", "block", "hadamard", "ring", "identity")
"""Names of ops.topology.TOPOLOGIES, here because settings are read without torch."""


def check_topology(name: str) -> str:
    """Refuse a name that no topology has."""
    if name not in TOPOLOGY_NAMES:
        raise ValueError(f"must be one of {', '.join(TOPOLOGY_NAMES)}")
    return name


Topology = Annotated[str, AfterValidator(check_topology)]
Probability = Annotated[float, Field(gt=0, le=1)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Radius = Annotated[float, Field(gt=0, le=10)]
Gain = Annotated[float, Field(ge=0, le=10)]
BlockSize = Annotated[int, Field(ge=1, le=65536)]


class ReservoirConfig(Section):
    """What is frozen and shared, and how a frozen matrix is made (MODEL: the reservoir family)."""

    plan: str = "U@a"
    """Plan string, tiled over the blocks: T, or letters out of f c g o G U D, then =, @name, +r, *n."""
    seed: Annotated[Seed | dict[str, Seed], AfterValidator(check_letters)] = 0
    """Seed of the frozen matrices, independent of the training seed; one value or a map by letter."""
    topology: Annotated[Topology | dict[str, Topology], AfterValidator(check_letters)] = {"U": "identity"}
    """Structure of frozen matrices: dense, block, hadamard, ring or identity; or a map by letter, dense for others."""
    block_size: Annotated[BlockSize | dict[str, BlockSize], AfterValidator(check_letters)] = 64
    """Inputs of one block with topology=block; divides the inputs of the matrix; one value or a map by letter."""
    connectivity: Annotated[Probability | dict[str, Probability], AfterValidator(check_letters)] = 0.5
    """Share of non-zero entries of a dense matrix or of a block, in (0, 1]; one value or a map by letter."""
    input_scaling: PerLetter = 1.0
    """Gain of frozen input matrices (f, c, g, G, U, and o, D) relative to unit gain; one value or a map by letter."""
    spectral_radius: Annotated[Radius | dict[str, Radius], AfterValidator(check_letters)] = 1.0
    """Spectral radius of an inserted W_r (post_scan, recurrent), else its gain relative to unit gain; or by letter."""
    gain: Annotated[bool | dict[str, bool], AfterValidator(check_letters)] = True
    """A frozen matrix has a trained per-channel output gain (one per block, also where shared); or by letter."""
    gain_init: Annotated[Gain | dict[str, Gain], AfterValidator(check_letters)] = 1.0
    """Initial value of these gains; 0 for r: an inserted layer does nothing until training wants it; or by letter."""
    placement: Literal["post_scan", "recurrent", "reset_gate", "token_shift", "gate"] = "post_scan"
    """Where W_r of a block with +r sits; gate: W_r is the frozen matrix named by reservoir.gate, no extra product."""
    gate: Literal["f", "g"] = "g"
    """Which gate's matrix is the reservoir with placement=gate; the plan must freeze it."""
    combine: Literal["replace", "add"] = "replace"
    """With post_scan, the reservoir's output replaces h in the readout, or is added to it."""
    output_gate: Literal["full", "tied", "none"] = "full"
    """full: W_g; tied: f's product with a bias of its own; none: no gate. tied and none have no W_g."""
    leak_rate: Annotated[float, Field(gt=0, le=1)] | Literal["trained"] = "trained"
    """trained: the forget gate W_f with its lower bounds; a number: f' = 1 - leak_rate, with neither."""
    source: Literal["broadcast", "regenerate"] = "broadcast"
    """broadcast: workers get the packed bytes from the object store; regenerate: each makes them from the seed."""

    version: Annotated[int, Field(ge=1, le=2)] = 2
    """Version of block and hadamard matrices: 1 permutes single channels. A run keeps that of its checkpoint."""

    @model_validator(mode="after")
    def _normalise_plan(self) -> "ReservoirConfig":
        self.plan = str(parse_plan(self.plan))
        return self

    @model_validator(mode="after")
    def _everything_named_exists(self) -> "ReservoirConfig":
        blocks = parse_plan(self.plan).pattern
        letters = {letter for block in blocks for letter in block.letters}
        frozen = {letter for block in blocks for letter in block.frozen_letters()}
        inserts = any(block.insert for block in blocks)
        if self.leak_rate != "trained" and "f" in letters:
            raise ConfigError(
                "reservoir.plan",
                self.plan,
                f"names f, which reservoir.leak_rate={self.leak_rate} removes",
                "Leave f out of the plan, or use reservoir.leak_rate=trained",
            )
        if self.output_gate != "full" and "g" in letters:
            raise ConfigError(
                "reservoir.plan",
                self.plan,
                f"names g, which reservoir.output_gate={self.output_gate} removes",
                "Leave g out of the plan, or use reservoir.output_gate=full",
            )
        if self.output_gate == "tied" and self.leak_rate != "trained":
            raise ConfigError(
                "reservoir.output_gate",
                "tied",
                f"needs the product of W_f, which reservoir.leak_rate={self.leak_rate} removes",
                "Use reservoir.leak_rate=trained, or another output gate",
            )
        if self.placement == "gate" and inserts:
            raise ConfigError(
                "reservoir.plan",
                self.plan,
                f"inserts a layer with +r, and reservoir.placement=gate makes W_{self.gate} the reservoir",
                f"Freeze {self.gate} in the plan instead of +r, or use another placement",
            )
        if self.placement == "gate" and self.gate not in frozen:
            raise ConfigError(
                "reservoir.plan",
                self.plan,
                f"no block freezes {self.gate}, which reservoir.placement=gate makes the reservoir",
                f"Freeze it, e.g. {self.gate}@a, or use another reservoir.gate",
            )
        return self

    def is_reservoir(self, letter: str) -> bool:
        """Say whether the frozen matrix `letter` is a reservoir W_r: inserted, or a gate's under placement=gate."""
        return letter == RESERVOIR_LETTER or (self.placement == "gate" and letter == self.gate)
