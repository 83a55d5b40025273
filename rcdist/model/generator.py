"""The generator of frozen matrices: the same bytes from the same specification on every platform."""

import hashlib
import json
import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from rcdist.model.frozen import FrozenSpec, num_stacked


@dataclass(frozen=True)
class Part:
    """Describe one tensor that a frozen matrix keeps.

    Attributes:
        kind: ternary: int8 of -1, 0, 1; index: int32.
        shape: of the tensor.
    """

    kind: Literal["ternary", "index"]
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Return the number of elements."""
        return math.prod(self.shape)

    @property
    def packed_bytes(self) -> int:
        """Return the bytes in which it travels: two bits per ternary value, four bytes per index."""
        return -(-self.size // 4) if self.kind == "ternary" else 4 * self.size


def list_parts(spec: FrozenSpec) -> dict[str, Part]:
    """Name the tensors of a frozen matrix, in the order in which they are packed."""
    outputs, inputs = spec.shape
    if spec.topology == "dense":
        return {"ternary": Part("ternary", spec.shape)}
    if spec.topology == "block":
        blocks = inputs // spec.block_size
        return {
            "ternary": Part("ternary", (blocks, outputs // blocks, spec.block_size)),
            "permutation": Part("index", (outputs,)),
        }
    if spec.topology == "hadamard":
        stacked, width = num_stacked(spec.shape), min(spec.shape)
        return {"signs": Part("ternary", (stacked, 2, width)), "permutation": Part("index", (stacked, width))}
    assert spec.topology == "ring"
    return {"permutation": Part("index", (inputs,))}


def generate(spec: FrozenSpec) -> dict[str, NDArray[Any]]:
    """Make the tensors of a specification, as `list_parts` names them.

    Counter-based: the key of Philox-4x64-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3") is
    a digest of (version, seed, key) and, but for ternary entries, the part's name; entry i is read from word i. Only
    raw integers, integer thresholds and a stable sort are used, so neither the platform nor a library's distributions
    can change the bytes.

    Returns:
        ternary: +1 and -1 with probability connectivity / 2 each, else 0. signs: +1 or -1. permutation: a random one;
        of a ring, a single cycle.
    """
    made: dict[str, NDArray[Any]] = {}
    for name, part in list_parts(spec).items():
        if name == "ternary":
            made[name] = _ternary(_words(spec, part.size), spec.connectivity)
        elif name == "signs":
            made[name] = _ternary(_words(spec, part.size, name), 1.0)
        else:
            rows = _raw(spec, part.size, name).reshape(-1, part.shape[-1])
            order = np.argsort(rows, axis=1, kind="stable").astype(np.int32)
            made[name] = _cycle(order[0]) if spec.topology == "ring" else order
        made[name] = made[name].reshape(part.shape)
    return made


def _raw(spec: FrozenSpec, count: int, part: str | None = None) -> NDArray[np.uint64]:
    name = json.dumps([spec.version, spec.seed, spec.key, *([part] if part else [])]).encode()
    key = int.from_bytes(hashlib.sha256(name).digest()[:16], "little")
    return np.random.Philox(key=key).random_raw(count)


def _words(spec: FrozenSpec, count: int, part: str | None = None) -> NDArray[np.uint32]:
    return _raw(spec, (count + 1) // 2, part).astype("<u8", copy=False).view("<u4")[:count]


def _ternary(words: NDArray[np.uint32], connectivity: float) -> NDArray[np.int8]:
    threshold = round(connectivity * 2**31)
    positive = (words < np.uint64(threshold)).view(np.int8)
    nonzero = (words < np.uint64(2 * threshold)).view(np.int8)
    # 1 where positive, -1 where non-zero and not positive.
    return positive * np.int8(2) - nonzero


def _cycle(order: NDArray[np.int32]) -> NDArray[np.int32]:
    """Turn a random order into the cycle that visits the channels in it: each reads from the one before."""
    source = np.empty_like(order)
    source[order] = np.roll(order, 1)
    return source
