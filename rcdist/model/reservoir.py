"""The ReservoirBank, which alone registers frozen matrices, and the packed form in which it travels."""

import hashlib
import json
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from rcdist.config import ModelConfig, ReservoirConfig
from rcdist.errors import ClusterError
from rcdist.model.frozen import FrozenSpec, frozen_specs, generate_ternary

# Two bits per weight: 00 zero, 01 plus one, 11 minus one; the first weight in the lowest bits.
_UNPACKED = np.array([[(0, 1, 0, -1)[byte >> shift & 3] for shift in (0, 2, 4, 6)] for byte in range(256)], np.int8)


def pack_ternary(ternary: NDArray[np.int8]) -> NDArray[np.uint8]:
    """Pack -1, 0, 1 into two bits each, four to a byte, row by row; the last byte is filled up with zeros."""
    codes = np.zeros((-(-ternary.size // 4), 4), np.uint8)
    codes.reshape(-1)[: ternary.size] = ternary.reshape(-1).view(np.uint8) & 3
    codes <<= np.array([0, 2, 4, 6], np.uint8)
    return np.bitwise_or.reduce(codes, axis=1)


def unpack_ternary(packed: NDArray[np.uint8], shape: tuple[int, int]) -> NDArray[np.int8]:
    """Undo `pack_ternary` into a new, writable int8 array. Cost: one table look-up per byte."""
    return _UNPACKED[packed].reshape(-1)[: shape[0] * shape[1]].reshape(shape)


@dataclass(frozen=True)
class PackedBank:
    """Hold every frozen matrix at two bits per weight, to be pickled or put into an object store.

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

    They are int8 and non-persistent buffers: no gradient, no optimizer state, no partition, not in a checkpoint, and
    `.to(torch.bfloat16)` leaves them as they are.

    Args:
        specs: the matrices, with unique keys.
        matrices: int8 tensors of the specs' shapes, in their order.
    """

    def __init__(self, specs: list[FrozenSpec], matrices: list[Tensor]) -> None:
        super().__init__()
        self.specs = tuple(specs)
        self._scales = {spec.key: spec.scale for spec in specs}
        assert len(self._scales) == len(specs), "keys of frozen matrices are unique"
        for spec, matrix in zip(specs, matrices, strict=True):
            assert matrix.dtype == torch.int8
            assert tuple(matrix.shape) == spec.shape
            self.register_buffer(_buffer_name(spec.key), matrix, persistent=False)

    def matrix(self, key: str) -> Tensor:
        """Return the int8 matrix (outputs, inputs) under a key such as `c@a`; the buffer itself."""
        return self.get_buffer(_buffer_name(key))

    def scale(self, key: str) -> float:
        """Return what multiplies the ternary matrix."""
        return self._scales[key]

    def digests(self) -> dict[str, str]:
        """Compute the SHA-256 of each resident matrix's packed bytes. Cost: about 5 s per 10^9 weights on a CPU."""
        return {key: _sha256(pack_ternary(self.matrix(key).cpu().numpy())) for key in self._scales}

    def digest(self) -> str:
        """Compute one SHA-256 over all specs and the digests of the resident bytes."""
        return _total_digest(self.specs, self.digests())

    def pack(self) -> PackedBank:
        """Pack the resident matrices to two bits per weight."""
        parts = [pack_ternary(self.matrix(key).cpu().numpy()) for key in self._scales]
        digests = {key: _sha256(part) for key, part in zip(self._scales, parts, strict=True)}
        data = np.concatenate([np.zeros(0, np.uint8), *parts])
        return PackedBank(self.specs, data, digests, _total_digest(self.specs, digests))

    @classmethod
    def from_packed(cls, packed: PackedBank) -> "ReservoirBank":
        """Unpack once into int8, checking every digest against what arrived.

        Raises:
            ClusterError: names the first matrix whose bytes differ, and both digests.
        """
        matrices, start = [], 0
        for spec in packed.specs:
            part = packed.data[start : start + -(-spec.num_weights // 4)]
            start += part.size
            _check_digest(f"reservoir matrix {spec.key}", _sha256(part), packed.digests[spec.key])
            matrices.append(torch.from_numpy(unpack_ternary(part, spec.shape)))
        _check_digest("reservoir", _total_digest(packed.specs, packed.digests), packed.digest)
        return cls(list(packed.specs), matrices)


def build_bank(model_config: ModelConfig, reservoir_config: ReservoirConfig) -> ReservoirBank:
    """Generate every frozen matrix of the plan. Under `torch.device("meta")` only their shapes are made."""
    specs = frozen_specs(model_config, reservoir_config)
    if torch.get_default_device().type == "meta":
        return ReservoirBank(specs, [torch.empty(spec.shape, dtype=torch.int8) for spec in specs])
    return ReservoirBank(specs, [torch.from_numpy(generate_ternary(spec)) for spec in specs])


def _buffer_name(key: str) -> str:
    # A buffer's name may not contain a dot; a sharing name has no hyphen, so this stays unique.
    return key.replace(".", "-")


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
