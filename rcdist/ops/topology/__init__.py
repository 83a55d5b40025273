"""The structures of frozen matrices by name: TOPOLOGIES is all that the rest of the code looks at."""

from rcdist.ops.topology.base import LinearMap, Part, Shape, Topology
from rcdist.ops.topology.block_diagonal import BLOCK, PERMUTED_BLOCK, BlockDiagonalMap
from rcdist.ops.topology.dense import DENSE, DenseMap
from rcdist.ops.topology.hadamard import HADAMARD, PERMUTED_HADAMARD, HadamardMap
from rcdist.ops.topology.identity import IDENTITY, IdentityMap
from rcdist.ops.topology.ring import RING, RingMap

__all__ = [
    "TOPOLOGIES",
    "BlockDiagonalMap",
    "DenseMap",
    "HadamardMap",
    "IdentityMap",
    "LinearMap",
    "Part",
    "RingMap",
    "Shape",
    "Topology",
    "topology_of",
]

TOPOLOGIES = {"dense": DENSE, "block": BLOCK, "hadamard": HADAMARD, "ring": RING, "identity": IDENTITY}
"""By the name that `reservoir.topology` gives; config/reservoir.py lists the same names."""

_OLDER = {("block", 1): PERMUTED_BLOCK, ("hadamard", 1): PERMUTED_HADAMARD}


def topology_of(name: str, version: int) -> Topology:
    """Return a topology as it was at a version of the generator; one that has not changed since is the same."""
    return _OLDER.get((name, version), TOPOLOGIES[name])
