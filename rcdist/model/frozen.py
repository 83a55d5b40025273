"""Frozen matrices: their specifications, and the generator that makes the same ternary bytes on every platform."""

import hashlib
import json
import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rcdist.config import ModelConfig, ReservoirConfig, per_letter
from rcdist.plan import RESERVOIR_LETTER, parse_plan

GENERATOR_VERSION = 1
"""Raised whenever the bytes that a specification stands for would change."""


@dataclass(frozen=True)
class FrozenSpec:
    """Say everything that one frozen matrix is made from; JSON-able with `to_dict`.

    Attributes:
        key: name in the bank: `c@a` shared under a, `c.3` block 3's own.
        letter: one of f c g o G U D, or r for an inserted reservoir.
        shape: (outputs, inputs).
        seed: reservoir.seed; with the key it decides the bytes.
        topology: structure; "dense": independent entries.
        connectivity: share of non-zero entries, in (0, 1].
        scale: multiplies the ternary matrix; not part of the bytes.
        version: of the generator.
    """

    key: str
    letter: str
    shape: tuple[int, int]
    seed: int
    topology: str
    connectivity: float
    scale: float
    version: int = GENERATOR_VERSION

    @property
    def num_weights(self) -> int:
        """Return outputs x inputs."""
        return self.shape[0] * self.shape[1]

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


def frozen_specs(model_config: ModelConfig, reservoir_config: ReservoirConfig) -> list[FrozenSpec]:
    """List every distinct frozen matrix of the plan, in order of first use (block, then letter, inserted ones last).

    The scale gives unit gain, 1 / sqrt(connectivity * inputs) (unit-rms input, unit-rms output), times
    `input_scaling`, or times `spectral_radius` for an inserted reservoir: a dense square matrix of unit gain has
    spectral radius about 1 (circular law).
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
    connectivity = per_letter(config.connectivity, letter, 0.5)
    relative = config.spectral_radius if letter == RESERVOIR_LETTER else per_letter(config.input_scaling, letter, 1.0)
    scale = relative / math.sqrt(connectivity * shape[1])
    return FrozenSpec(key, letter, shape, config.seed, config.topology, connectivity, scale)


def generate_ternary(spec: FrozenSpec) -> NDArray[np.int8]:
    """Make the matrix of a specification.

    Counter-based: the key of Philox-4x64-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3") is
    a digest of (version, seed, key), and entry i is read from 32-bit word i. Only raw integers and integer
    thresholds are used, so neither the platform nor a library's distributions can change the bytes.

    Returns:
        int8 (outputs, inputs): +1 and -1 with probability connectivity / 2 each, else 0.
    """
    name = json.dumps([spec.version, spec.seed, spec.key]).encode()
    key = int.from_bytes(hashlib.sha256(name).digest()[:16], "little")
    raw = np.random.Philox(key=key).random_raw((spec.num_weights + 1) // 2)
    words = raw.astype("<u8", copy=False).view("<u4")[: spec.num_weights]
    threshold = round(spec.connectivity * 2**31)
    positive = (words < np.uint64(threshold)).view(np.int8)
    nonzero = (words < np.uint64(2 * threshold)).view(np.int8)
    # 1 where positive, -1 where non-zero and not positive.
    return (positive * np.int8(2) - nonzero).reshape(spec.shape)
