"""Linear maps of every topology against their matrices: transposes, unit gain, spectral radius, orthogonality."""

import numpy as np
import pytest
import torch
from torch import Tensor

from rcdist.config import Architecture, ModelConfig, ReservoirConfig
from rcdist.model.reservoir import ReservoirBank, build_bank
from rcdist.model.specs import frozen_specs
from rcdist.ops.topology.hadamard import hadamard_transform, transform_size

SHAPES = [("c", 24, 48), ("G", 24, 48), ("D", 24, 48), ("G", 32, 16)]
CASES = [
    (topology, *shape)
    for topology in ("dense", "block", "hadamard", "ring", "identity", "permuted block", "permuted hadamard")
    for shape in SHAPES
] + [
    ("hadamard", "U", 24, 40),
    ("ring", "U", 24, 40),
    ("ring", "D", 24, 40),
    ("identity", "U", 24, 40),
    ("identity", "D", 24, 40),
]
"""permuted: as generator version 1 made it."""


def bank(topology: str, plan: str, width: int, glu_width: int = 48, **settings: object) -> ReservoirBank:
    if topology.startswith("permuted "):
        topology, settings = topology.removeprefix("permuted "), settings | {"version": 1}
    config = ReservoirConfig(plan=plan, topology=topology, block_size=8, **settings)
    return build_bank(Architecture(ModelConfig(num_layers=1, width=width, glu_width=glu_width), config))


def as_matrix(a_bank: ReservoirBank, key: str) -> Tensor:
    """Return the scaled float64 matrix (N, K) of a map, a column per unit vector."""
    inputs = a_bank.spec(key).shape[1]
    return a_bank.linear_map(key).times(torch.eye(inputs, dtype=torch.float64)).t() * a_bank.scale(key)


@pytest.mark.parametrize(("topology", "letter", "width", "glu_width"), CASES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_transpose(topology: str, letter: str, width: int, glu_width: int, dtype: torch.dtype) -> None:
    a_bank = bank(topology, letter + "@a", width, glu_width)
    (spec,) = a_bank.specs
    outputs, inputs = spec.shape
    a, a_map = as_matrix(a_bank, spec.key) / spec.scale, a_bank.linear_map(spec.key)
    assert a.shape == (outputs, inputs)
    x, y = torch.randn(5, inputs).to(dtype), torch.randn(5, outputs).to(dtype)
    tolerance = {"rtol": 2e-2, "atol": 5e-2} if dtype == torch.bfloat16 else {"rtol": 1e-4, "atol": 1e-4}
    for found, expected in (
        (a_map.times(x), x.double() @ a.t()),
        (a_map.times_transposed(y), y.double() @ a),
        (a_map.to(dtype).times(x), x.double() @ a.t()),
        (a_map.to(dtype).times_transposed(y), y.double() @ a),
    ):
        assert found.dtype == dtype
        torch.testing.assert_close(found.double(), expected, **tolerance)


def test_block_ring_and_hadamard_by_their_definitions() -> None:
    for topology in ("block", "permuted block"):
        a_bank = bank(topology, "G@a", 24, 48)
        ternary, permutation = (a_bank.get_buffer(f"G@a-{name}") for name in ("ternary", "permutation"))
        assert sorted(permutation.tolist()) == list(range(48))
        expected = torch.block_diag(*ternary.double())[permutation.long()]
        torch.testing.assert_close(as_matrix(a_bank, "G@a"), expected * a_bank.scale("G@a"))
        # Three blocks of 16 outputs are three runs.
        kept_together = permutation.view(3, 16) % 16 == torch.arange(16)
        assert bool(kept_together.all()) == (topology == "block")
    eye = torch.eye(24, dtype=torch.float64)
    rings = [eye[order.long()] for order in bank("ring", "G@a", 24, 40).get_buffer("G@a-permutation")]
    torch.testing.assert_close(as_matrix(bank("ring", "G@a", 24, 40), "G@a"), torch.cat(rings)[:40])
    torch.testing.assert_close(as_matrix(bank("identity", "G@a", 24, 40), "G@a"), torch.cat([eye, eye])[:40])
    h2 = torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64) / 2**0.5
    transform = torch.block_diag(*[torch.kron(torch.kron(h2, h2), h2)] * 3)
    # Channel k of a run moves on by k runs.
    moved = torch.tensor([(run - k) % 3 * 8 + k for run in range(3) for k in range(8)])
    for topology in ("hadamard", "permuted hadamard"):
        a_bank = bank(topology, "G@a", 24, 48)
        if topology == "permuted hadamard":
            signs, permutation = (a_bank.get_buffer(f"G@a-{name}") for name in ("signs", "permutation"))
            stack = [(*pair, order) for pair, order in zip(signs, permutation, strict=True)]
        else:
            first, *seconds = a_bank.get_buffer("G@a-signs")
            stack = [(first, second, moved) for second in seconds]
        expected = torch.cat(
            [
                transform @ second.double().diag() @ eye[order.long()] @ transform @ first.double().diag()
                for first, second, order in stack
            ]
        )
        torch.testing.assert_close(as_matrix(a_bank, "G@a"), expected)


@pytest.mark.parametrize("size", [1, 2, 8, 32, 512])
def test_transform_is_orthonormal_and_its_own_inverse(size: int) -> None:
    x = torch.randn(3, 2 * size, dtype=torch.float64)
    y = hadamard_transform(x, size)
    torch.testing.assert_close(hadamard_transform(y, size), x)
    torch.testing.assert_close(y[:, 0], x[:, :size].sum(1) / size**0.5)


def test_transform_size() -> None:
    assert [transform_size(width) for width in (1, 2, 24, 768, 1024, 2816, 6912)] == [1, 2, 8, 256, 1024, 256, 256]


@pytest.mark.parametrize(("topology", "letter"), sorted({case[:2] for case in CASES}))
def test_unit_gain(topology: str, letter: str) -> None:
    a_bank = bank(topology, letter + "@a", 256, 512, connectivity=0.3)
    (spec,) = a_bank.specs
    y = torch.randn(512, spec.shape[1], dtype=torch.float64) @ as_matrix(a_bank, spec.key).t()
    assert abs(y.square().mean().sqrt() - 1) < 0.03


@pytest.mark.parametrize("topology", ["hadamard", "permuted hadamard", "ring", "identity"])
@pytest.mark.parametrize("width", [24, 64])
def test_spectral_radius_is_exact(topology: str, width: int) -> None:
    a = as_matrix(bank(topology, "T+r@a", width, spectral_radius=0.8), "r@a").numpy()
    assert np.abs(np.linalg.eigvals(a)) == pytest.approx(0.8, rel=1e-6)


def test_spectral_radius_of_a_large_dense_matrix() -> None:
    (spec,) = frozen_specs(
        Architecture(ModelConfig(num_layers=1, width=512), ReservoirConfig(plan="T+r@a", spectral_radius=0.8))
    )
    a = as_matrix(bank("dense", "T+r@a", 512, spectral_radius=0.8), spec.key).numpy()
    assert np.abs(np.linalg.eigvals(a)).max() == pytest.approx(0.8, rel=0.05)
