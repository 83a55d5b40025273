"""Frozen matrices: what each one is made from, and the scale that gives it its gain."""

import math
from dataclasses import asdict, dataclass
from typing import Any

from rcdist.config import ModelConfig, ReservoirConfig, per_letter
from rcdist.errors import ConfigError
from rcdist.ops.topology import transform_size
from rcdist.plan import RESERVOIR_LETTER, parse_plan

GENERATOR_VERSION = 1
"""Raised whenever the bytes that a specification stands for would change."""

_SMALLEST_TRANSFORM = 8


@dataclass(frozen=True)
class FrozenSpec:
    """Say everything that one frozen matrix is made from; JSON-able with `to_dict`.

    Attributes:
        key: name in the bank: `c@a` shared under a, `c.3` block 3's own.
        letter: one of f c g o G U D, or r for an inserted reservoir.
        shape: (outputs, inputs).
        seed: reservoir.seed; with the key it decides the bytes.
        topology: structure: dense, block, hadamard or ring.
        connectivity: share of non-zero entries of dense and block, in (0, 1]; elsewhere 1.
        block_size: inputs of one block; 0 for other topologies.
        scale: multiplies the matrix; not part of the bytes.
        version: of the generator.
    """

    key: str
    letter: str
    shape: tuple[int, int]
    seed: int
    topology: str
    connectivity: float
    scale: float
    block_size: int = 0
    version: int = GENERATOR_VERSION

    @property
    def num_weights(self) -> int:
        """Return the ternary weights that are stored: none of a structured topology (hadamard, ring)."""
        return stored_weights(self.topology, self.shape, self.block_size)

    def to_dict(self) -> dict[str, Any]:
        """Return plain types, for a manifest."""
        return asdict(self) | {"shape": list(self.shape)}

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> "FrozenSpec":
        """Read what `to_dict` wrote, also after a round trip through JSON."""
        return cls(**fields | {"shape": tuple(fields["shape"])})


def matrix_shape(model_config: ModelConfig, letter: str) -> tuple[int, int]:
    """Return (outputs, inputs) of the matrix `letter`."""
    width, glu_width = model_config.width, model_config.glu_width
    return {"G": (glu_width, width), "U": (glu_width, width), "D": (width, glu_width)}.get(letter, (width, width))


def stored_weights(topology: str, shape: tuple[int, int], block_size: int) -> int:
    """Count the ternary weights that a frozen matrix keeps."""
    outputs, inputs = shape
    return {"dense": outputs * inputs, "block": outputs * block_size}.get(topology, 0)


def num_stacked(shape: tuple[int, int]) -> int:
    """Count the stacked transforms of a hadamard matrix."""
    return -(-max(shape) // min(shape))


def unit_gain_scale(topology: str, shape: tuple[int, int], connectivity: float, block_size: int) -> float:
    """Return the factor that turns unit-rms input into unit-rms output.

    A row of a ternary matrix has connectivity * inputs entries of 1 or -1; a ring moves its input; a square transform
    and a stack of them have rows of norm 1, and a contraction is the transpose of a stack: its columns have norm 1.
    """
    outputs, inputs = shape
    if topology == "dense":
        return 1 / math.sqrt(connectivity * inputs)
    if topology == "block":
        return 1 / math.sqrt(connectivity * block_size)
    return math.sqrt(min(outputs / inputs, 1.0))


def frozen_specs(model_config: ModelConfig, reservoir_config: ReservoirConfig) -> list[FrozenSpec]:
    """List every distinct frozen matrix of the plan, in order of first use (block, then letter, inserted ones last).

    The scale gives unit gain times `input_scaling`, or times `spectral_radius` for a reservoir W_r: at unit gain a
    square hadamard or ring matrix is orthogonal and has spectral radius 1, a dense one about 1 (circular law).

    Raises:
        ConfigError: a topology does not fit the shape of a matrix.
    """
    plan = parse_plan(reservoir_config.plan)
    specs: dict[str, FrozenSpec] = {}
    for layer, block in enumerate(plan.tile(model_config.num_layers)):
        for letter in block.frozen_letters() + (RESERVOIR_LETTER if block.insert else ""):
            key = plan.matrix_key(layer, letter, block)
            if key not in specs:
                specs[key] = _build_spec(model_config, reservoir_config, key, letter)
    return list(specs.values())


def _build_spec(model_config: ModelConfig, config: ReservoirConfig, key: str, letter: str) -> FrozenSpec:
    shape = matrix_shape(model_config, letter)
    topology = per_letter(config.topology, letter, "dense")
    block_size = per_letter(config.block_size, letter, 64) if topology == "block" else 0
    _check_shape(topology, shape, block_size, letter)
    connectivity = per_letter(config.connectivity, letter, 0.5) if topology in ("dense", "block") else 1.0
    relative = config.spectral_radius if config.is_reservoir(letter) else config.input_scaling
    scale = per_letter(relative, letter, 1.0) * unit_gain_scale(topology, shape, connectivity, block_size)
    seed = per_letter(config.seed, letter, 0)
    return FrozenSpec(key, letter, shape, seed, topology, connectivity, scale, block_size)


def _check_shape(topology: str, shape: tuple[int, int], block_size: int, letter: str) -> None:
    outputs, inputs = shape
    if topology == "hadamard" and transform_size(min(shape)) < _SMALLEST_TRANSFORM:
        raise ConfigError(
            "reservoir.topology",
            "hadamard",
            f"matrix {letter} is {outputs} x {inputs}, and {min(shape)} is no multiple of {_SMALLEST_TRANSFORM}",
            f"Use a width that is, best one with a large power of two, or another topology for {letter}",
        )
    if topology == "block" and (inputs % block_size or outputs % (inputs // block_size)):
        raise ConfigError(
            "reservoir.block_size",
            block_size,
            f"the matrix {letter} is {outputs} x {inputs}: blocks of {block_size} inputs do not divide both",
            f"Use a divisor of {inputs} for which {inputs} / block_size divides {outputs}, "
            f"e.g. {inputs // math.gcd(inputs, outputs)}",
        )
