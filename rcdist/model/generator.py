"""The generator of frozen matrices: the same bytes from the same specification on every platform."""

import hashlib
import json
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rcdist.model.specs import FrozenSpec


def generate(spec: FrozenSpec) -> dict[str, NDArray[Any]]:
    """Make the tensors of a specification, as `spec.parts` names them.

    Counter-based: the key of Philox-4x64-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3") is
    a digest of (version, seed, key) and, but for weights, the part's name; entry i is read from word i. Only
    raw integers, integer thresholds and a stable sort are used, so neither the platform nor a library's distributions
    can change the bytes.

    Returns:
        By the part's kind: weights are +1 and -1 with probability connectivity / 2 each, else 0; the others random.
    """
    made: dict[str, NDArray[Any]] = {}
    values: NDArray[Any]
    for name, part in spec.parts().items():
        if part.kind == "weights":
            values = _ternary(_words(spec, part.size), spec.connectivity)
        elif part.kind == "signs":
            values = _ternary(_words(spec, part.size, name), 1.0)
        else:
            rows = _raw(spec, part.size, name).reshape(-1, part.shape[-1])
            order = np.argsort(rows, axis=1, kind="stable").astype(np.int32)
            values = np.stack([_cycle(row) for row in order]) if part.kind == "cycle" else order
        made[name] = values.reshape(part.shape)
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
