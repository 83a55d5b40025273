"""The ReservoirBank, which alone registers frozen matrices, and the packed form in which it travels."""

import hashlib
import json
import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from rcdist.config import Architecture
from rcdist.errors import ClusterError
from rcdist.model.generator import generate
from rcdist.model.specs import FrozenSpec, frozen_specs
from rcdist.ops.topology import LinearMap, Part

# Two bits per weight: 00 zero, 01 plus one, 11 minus one; the first weight in the lowest bits.
_UNPACKED = np.array([[(0, 1, 0, -1)[byte >> shift & 3] for shift in (0, 2, 4, 6)] for byte in range(256)], np.int8)


def pack_ternary(ternary: NDArray[np.int8]) -> NDArray[np.uint8]:
    """Pack -1, 0, 1 into two bits each, four to a byte, row by row; the last byte is filled up with zeros."""
    codes = np.zeros((-(-ternary.size // 4), 4), np.uint8)
    codes.reshape(-1)[: ternary.size] = ternary.reshape(-1).view(np.uint8) & 3
    codes <<= np.array([0, 2, 4, 6], np.uint8)
    return np.bitwise_or.reduce(codes, axis=1)


def unpack_ternary(packed: NDArray[np.uint8], shape: tuple[int, ...]) -> NDArray[np.int8]:
    """Undo `pack_ternary` into a new, writable int8 array. Cost: one table look-up per byte."""
    return _UNPACKED[packed].reshape(-1)[: math.prod(shape)].reshape(shape)


@dataclass(frozen=True)
class PackedBank:
    """Hold every frozen matrix at two bits per ternary weight, to be pickled or put into an object store.

    Attributes:
        specs: the matrices, in order.
        data: uint8, the packed matrices one after the other; may be read-only.
        digests: SHA-256 of each matrix's packed bytes, by key.
        digest: SHA-256 of all specs and digests.
    """

    specs: tuple[FrozenSpec, ...]
    data: NDArray[np.uint8]
    digests: dict[str, str]
    digest: str


class ReservoirBank(nn.Module):
    """Hold the frozen matrices of a model, once each.

    Their tensors are integers in non-persistent buffers: no gradient, no optimizer state, no partition, not in a
    checkpoint, and `.to(torch.bfloat16)` leaves them as they are. At most one byte per weight is resident.

    Args:
        specs: the matrices, with unique keys.
        parts: the tensors of each, in their order, as `FrozenSpec.parts` names them.
    """

    def __init__(self, specs: list[FrozenSpec], parts: list[dict[str, Tensor]]) -> None:
        super().__init__()
        self.specs = tuple(specs)
        self._specs = {spec.key: spec for spec in specs}
        self._parts: dict[str, list[str]] = {}
        assert len(self._specs) == len(specs), "keys of frozen matrices are unique"
        for spec, tensors in zip(specs, parts, strict=True):
            assert all(tensors[name].dtype == part.dtype for name, part in spec.parts().items())
            resident = tensors | spec.structure.companions(tensors)
            self._parts[spec.key] = list(resident)
            for name, tensor in resident.items():
                self.register_buffer(_buffer_name(spec.key, name), tensor, persistent=False)

    def matrix(self, key: str) -> Tensor:
        """Return the int8 ternary tensor of a dense or block matrix such as `c@a`; the buffer itself."""
        return self.get_buffer(_buffer_name(key, "ternary"))

    def linear_map(self, key: str) -> LinearMap:
        """Return what multiplies by the matrix, unscaled, over the buffers as they are now."""
        spec = self._specs[key]
        parts = {name: self.get_buffer(_buffer_name(key, name)) for name in self._parts[key]}
        return spec.linear_map(parts)

    def scale(self, key: str) -> float:
        """Return what multiplies the matrix."""
        return self._specs[key].scale

    def spec(self, key: str) -> FrozenSpec:
        """Return what the matrix is made from."""
        return self._specs[key]

    def digests(self) -> dict[str, str]:
        """Compute the SHA-256 of each resident matrix's packed bytes. Cost: about 5 s per 10^9 weights on a CPU."""
        return {spec.key: self.digest_of(spec.key) for spec in self.specs}

    def digest_of(self, key: str) -> str:
        """Compute the SHA-256 of one resident matrix's packed bytes."""
        return _sha256(self._pack_one(self._specs[key]))

    def digest(self) -> str:
        """Compute one SHA-256 over all specs and the digests of the resident bytes."""
        return _total_digest(self.specs, self.digests())

    def _pack_one(self, spec: FrozenSpec) -> NDArray[np.uint8]:
        packed = [np.zeros(0, np.uint8)]
        for name, part in spec.parts().items():
            array = self.get_buffer(_buffer_name(spec.key, name)).cpu().numpy()
            packed.append(pack_ternary(array) if part.is_ternary else _as_bytes(array))
        return np.concatenate(packed)

    def without(self, keys: Collection[str]) -> "ReservoirBank":
        """Return the bank of the other matrices, over the same tensors."""
        specs = [spec for spec in self.specs if spec.key not in keys]
        parts = [{name: self.get_buffer(_buffer_name(spec.key, name)) for name in spec.parts()} for spec in specs]
        return ReservoirBank(specs, parts)

    def pack(self) -> PackedBank:
        """Pack the resident matrices to two bits per weight."""
        parts = {spec.key: self._pack_one(spec) for spec in self.specs}
        digests = {key: _sha256(part) for key, part in parts.items()}
        data = np.concatenate([np.zeros(0, np.uint8), *parts.values()])
        return PackedBank(self.specs, data, digests, _total_digest(self.specs, digests))

    @classmethod
    def from_packed(cls, packed: PackedBank) -> "ReservoirBank":
        """Unpack once into int8, checking every digest against what arrived.

        Raises:
            ClusterError: names the first matrix whose bytes differ, and both digests.
        """
        matrices, start = [], 0
        for spec in packed.specs:
            size = sum(part.packed_bytes for part in spec.parts().values())
            _check_digest(
                f"reservoir matrix {spec.key}", _sha256(packed.data[start : start + size]), packed.digests[spec.key]
            )
            tensors = {}
            for name, part in spec.parts().items():
                piece = packed.data[start : start + part.packed_bytes]
                start += part.packed_bytes
                tensors[name] = torch.from_numpy(_unpack(piece, part))
            matrices.append(tensors)
        _check_digest("reservoir", _total_digest(packed.specs, packed.digests), packed.digest)
        return cls(list(packed.specs), matrices)


def build_bank(architecture: Architecture) -> ReservoirBank:
    """Generate every frozen matrix of the plan. Under `torch.device("meta")` only their shapes are made."""
    specs = frozen_specs(architecture)
    if torch.get_default_device().type == "meta":
        return ReservoirBank(specs, [_meta_parts(spec) for spec in specs])
    made = [{name: torch.from_numpy(array) for name, array in generate(spec).items()} for spec in specs]
    return ReservoirBank(specs, made)


def _meta_parts(spec: FrozenSpec) -> dict[str, Tensor]:
    return {name: torch.empty(part.shape, dtype=part.dtype) for name, part in spec.parts().items()}


def _unpack(piece: NDArray[np.uint8], part: Part) -> NDArray[Any]:
    if part.is_ternary:
        return unpack_ternary(piece, part.shape)
    return piece.copy().view("<i4").astype(np.int32).reshape(part.shape)


def _as_bytes(indices: NDArray[np.int32]) -> NDArray[np.uint8]:
    return np.ascontiguousarray(indices, "<i4").reshape(-1).view(np.uint8)


def _buffer_name(key: str, part: str) -> str:
    # A buffer's name may not contain a dot; a sharing name has no hyphen, so this stays unique.
    return f"{key.replace('.', '-')}-{part}"


def _sha256(part: NDArray[np.uint8]) -> str:
    return hashlib.sha256(np.ascontiguousarray(part).data).hexdigest()


def _total_digest(specs: tuple[FrozenSpec, ...], digests: dict[str, str]) -> str:
    listed = [[spec.to_dict(), digests[spec.key]] for spec in specs]
    return hashlib.sha256(json.dumps(listed, sort_keys=True).encode()).hexdigest()


def _check_digest(what: str, found: str, expected: str) -> None:
    if found != expected:
        raise ClusterError(
            what,
            found[:16],
            f"the SHA-256 of the received bytes differs from the sender's, {expected[:16]}",
            "Start the run again; if it repeats, use reservoir.source=regenerate",
        )
