"""FrozenSpec: what each frozen matrix is made from, and the scale that gives it its gain."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from rcdist.config import Architecture, per_letter
from rcdist.config.plan import RESERVOIR_LETTER
from rcdist.ops.topology import LinearMap, Part, Topology, topology_of


@dataclass(frozen=True)
class FrozenSpec:
    """Say everything that one frozen matrix is made from; JSON-able with `to_dict`.

    Attributes:
        key: name in the bank: `c@a` shared under a, `c.3` block 3's own.
        letter: one of f c g o G U D, or r for an inserted reservoir.
        shape: (outputs, inputs).
        seed: reservoir.seed; with the key it decides the bytes.
        topology: name of its structure, see `ops.topology.topology_of`.
        connectivity: share of non-zero entries, in (0, 1]; 1 where the topology has no such thing.
        block_size: inputs of one block; 0 where the topology has none.
        scale: multiplies the matrix; not part of the bytes.
        version: of the topology's structure and bytes.
    """

    key: str
    letter: str
    shape: tuple[int, int]
    seed: int
    topology: str
    connectivity: float
    scale: float
    block_size: int = 0
    version: int = 1

    @property
    def structure(self) -> Topology:
        """Return the topology at the version."""
        return topology_of(self.topology, self.version)

    def parts(self) -> dict[str, Part]:
        """Name the tensors that the matrix keeps, in the order in which they are packed."""
        return self.structure.parts(self.shape, self.block_size)

    def linear_map(self, parts: Mapping[str, Tensor]) -> LinearMap:
        """Return what multiplies by the matrix, unscaled, over its resident tensors."""
        return self.structure.linear_map(parts, self.shape)

    @property
    def num_weights(self) -> int:
        """Return the ternary weights that are stored: none of a structured topology (hadamard, ring)."""
        return sum(part.size for part in self.parts().values() if part.kind == "weights")

    @property
    def flops(self) -> int:
        """Return the FLOPs of one product with one vector."""
        return self.structure.flops(self.shape, self.block_size)

    def to_dict(self) -> dict[str, Any]:
        """Return plain types, for a manifest."""
        return asdict(self) | {"shape": list(self.shape)}


def frozen_specs(architecture: Architecture) -> list[FrozenSpec]:
    """List every distinct frozen matrix of the plan, in order of first use (block, then letter, inserted ones last).

    The scale gives unit gain times `input_scaling`, or times `spectral_radius` for a reservoir W_r: at unit gain a
    square hadamard or ring matrix is orthogonal and has spectral radius 1, a dense one about 1 (circular law).

    Raises:
        ConfigError: a topology does not fit the shape of a matrix.
    """
    specs: dict[str, FrozenSpec] = {}
    for layer, block in enumerate(architecture.blocks):
        for letter in block.frozen_letters() + (RESERVOIR_LETTER if block.insert else ""):
            key = architecture.plan.matrix_key(layer, letter, block)
            if key not in specs:
                specs[key] = _build_spec(architecture, key, letter)
    return list(specs.values())


def _build_spec(architecture: Architecture, key: str, letter: str) -> FrozenSpec:
    config, shape = architecture.reservoir, architecture.shape(letter)
    name = per_letter(config.topology, letter, "dense")
    topology = topology_of(name, config.version)
    block_size = per_letter(config.block_size, letter, 64) if topology.has_blocks else 0
    topology.check(shape, block_size, letter)
    connectivity = per_letter(config.connectivity, letter, 0.5) if topology.has_connectivity else 1.0
    relative = config.spectral_radius if config.is_reservoir(letter) else config.input_scaling
    scale = per_letter(relative, letter, 1.0) * topology.unit_gain(shape, connectivity, block_size)
    seed = per_letter(config.seed, letter, 0)
    return FrozenSpec(key, letter, shape, seed, name, connectivity, scale, block_size, topology.version)
