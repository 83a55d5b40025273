"""The measured spectral radius against eigenvalues, of every topology."""

import numpy as np
import pytest
import torch

from rcdist.config import Architecture, ModelConfig, ReservoirConfig
from rcdist.model.reservoir import ReservoirBank, build_bank
from rcdist.model.spectrum import measure_reservoirs, measure_spectral_radius
from rcdist.ops.topology import DenseMap


def bank(topology: str, width: int, plan: str = "T+r@a") -> ReservoirBank:
    config = ReservoirConfig(plan=plan, topology=topology, spectral_radius=0.8)
    return build_bank(Architecture(ModelConfig(num_layers=6, width=width, glu_width=2 * width), config))


@pytest.mark.parametrize("topology", ["hadamard", "ring", "identity"])
def test_exact_where_the_matrix_is_orthogonal(topology: str) -> None:
    assert measure_reservoirs(bank(topology, 96), "r") == pytest.approx({"r@a": 0.8}, rel=1e-4)


@pytest.mark.parametrize(("topology", "width"), [("dense", 256), ("block", 256), ("dense", 1024)])
def test_follows_the_eigenvalues_of_a_random_matrix(topology: str, width: int) -> None:
    made = bank(topology, width)
    (measured,) = measure_reservoirs(made, "r").values()
    table = made.linear_map("r@a").times(torch.eye(width, dtype=torch.float64)).t() * made.scale("r@a")
    assert measured == pytest.approx(np.abs(np.linalg.eigvals(table.numpy())).max(), rel=0.02)
    if width >= 1024:
        assert measured == pytest.approx(0.8, rel=0.05)


def test_a_nilpotent_matrix_has_radius_zero() -> None:
    shift = torch.diag(torch.ones(3, dtype=torch.int8), 1)
    assert measure_spectral_radius(DenseMap({"ternary": shift}, (4, 4)), 4) == 0.0


def test_only_square_matrices_of_the_letters_and_not_all_of_many() -> None:
    made = bank("hadamard", 32, plan="cG@a+r")
    assert list(measure_reservoirs(made, "rG", most=2)) == ["r.0", "r.1"]
    assert len(measure_reservoirs(made, "rc")) == 4
