"""The generator of frozen matrices: golden bytes, independence of seed and key, and its statistics."""

import hashlib

import numpy as np
import pytest

from rcdist.model.generator import generate
from rcdist.model.specs import FrozenSpec


def spec(
    topology: str, shape: tuple[int, int], block_size: int = 0, connectivity: float = 0.3, version: int = 1
) -> FrozenSpec:
    return FrozenSpec("c@a", "c", shape, 11, topology, connectivity, 1.0, block_size, version)


@pytest.mark.parametrize(
    ("what", "golden"),
    [
        (spec("dense", (5, 7)), "bab98699ef7b1b514d37fa86fb613d2bf95fc529003a380c3916fad5cf3f7012"),
        (spec("block", (10, 8), 4), "ee7a5cbfa64dc8f5fe3fc2f8448322aab92f97c7ee0ad9815d72b13fbe758825"),
        (spec("block", (10, 8), 4, version=2), "95a76376a72187b82ebf0a610d934689998b9723154445226dd37081e646669f"),
        (spec("hadamard", (40, 24)), "b87cb0eebf148918736b5532be908b17697ecd0810984b5162a16e03962c2583"),
        (spec("hadamard", (40, 24), version=2), "cdd5caf97eced2c148bebc50ef51b76ae7e480f7ced500ec4c4fe584e0407469"),
        (spec("ring", (9, 9)), "ae49cc8b9d6e9627ac54f6e0332c87249496f3910b2e955ecb991037c54cbb90"),
    ],
    ids=["dense", "block-1", "block-2", "hadamard-1", "hadamard-2", "ring"],
)
def test_golden_bytes(what: FrozenSpec, golden: str) -> None:
    made, parts = generate(what), what.parts()
    assert list(made) == list(parts)
    whole = hashlib.sha256()
    for name, part in parts.items():
        assert made[name].shape == part.shape
        assert made[name].dtype == (np.int8 if part.is_ternary else np.int32)
        whole.update(np.ascontiguousarray(made[name], "i1" if part.is_ternary else "<i4").tobytes())
    assert whole.hexdigest() == golden


@pytest.mark.parametrize("topology", ["dense", "block", "hadamard", "ring"])
def test_bytes_follow_seed_and_key_but_not_scale(topology: str) -> None:
    def make(key: str = "c@a", seed: int = 0, scale: float = 1.0) -> bytes:
        block_size = 8 if topology == "block" else 0
        made = generate(FrozenSpec(key, "c", (32, 32), seed, topology, 0.5, scale, block_size))
        return b"".join(part.tobytes() for part in made.values())

    assert make() == make(scale=2.0)
    assert len({make(), make(key="c.1"), make(seed=1)}) == 3


@pytest.mark.parametrize("connectivity", [0.01, 0.5, 1.0])
def test_shares_of_the_three_values(connectivity: float) -> None:
    matrix = generate(spec("dense", (1000, 1001), connectivity=connectivity))["ternary"]
    for value, expected in ((1, connectivity / 2), (-1, connectivity / 2), (0, 1 - connectivity)):
        assert abs((matrix == value).mean() - expected) < 0.002
    # Entries of neighbouring 32-bit words, rows and columns are independent.
    signs = matrix.astype(np.float64)
    for other in (np.roll(signs, 1, 0), np.roll(signs, 1, 1)):
        assert abs((signs * other).mean()) < 0.005 * connectivity


def test_permutations_are_permutations_and_a_ring_is_one_cycle() -> None:
    for permutation in generate(spec("hadamard", (40, 24)))["permutation"]:
        assert sorted(permutation) == list(range(24))
    source = generate(spec("ring", (9, 9)))["permutation"]
    first, second = generate(spec("ring", (18, 9)))["permutation"]
    assert not np.array_equal(first, second)
    for row in (source, first, second):
        visited, at = [], 0
        for _ in range(9):
            visited.append(at)
            at = int(row[at])
        assert at == 0 and sorted(visited) == list(range(9))
    for version in (1, 2):
        signs = generate(spec("hadamard", (40, 24), version=version))["signs"]
        assert set(signs.flatten()) == {-1, 1}
        assert not np.array_equal(signs[0], signs[1])
