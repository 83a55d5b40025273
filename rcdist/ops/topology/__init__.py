"""The structures of frozen matrices by name: TOPOLOGIES is all that the rest of the code looks at."""

from rcdist.ops.topology.base import LinearMap, Part, Shape, Topology
from rcdist.ops.topology.block_diagonal import BlockDiagonal, BlockDiagonalMap
from rcdist.ops.topology.dense import Dense, DenseMap
from rcdist.ops.topology.hadamard import Hadamard, HadamardMap
from rcdist.ops.topology.ring import Ring, RingMap

__all__ = [
    "TOPOLOGIES",
    "BlockDiagonalMap",
    "DenseMap",
    "HadamardMap",
    "LinearMap",
    "Part",
    "RingMap",
    "Shape",
    "Topology",
]

TOPOLOGIES: dict[str, Topology] = {
    "dense": Dense(),
    "block": BlockDiagonal(),
    "hadamard": Hadamard(),
    "ring": Ring(),
}
"""By the name that `reservoir.topology` gives; config/reservoir.py lists the same names."""
