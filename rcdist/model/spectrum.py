"""Measure the spectral radius of square frozen matrices by the growth of iterated vectors."""

import math

import torch

from rcdist.model.reservoir import ReservoirBank
from rcdist.ops.topology import LinearMap

_WARM_UP, _STEPS, _VECTORS = 100, 400, 4


def measure_spectral_radius(matrix: LinearMap, width: int) -> float:
    """Estimate the largest absolute eigenvalue of a square map, unscaled.

    Vectors that the matrix is applied to again and again grow by the spectral radius per step in the long run, also
    where the largest eigenvalues are complex, which a plain power iteration does not handle.

    Args:
        matrix: from `ReservoirBank.linear_map`.
        width: its inputs and outputs.

    Returns:
        The radius; exact to rounding for an orthogonal map, within about 1 % for a random dense one.

    Cost: 500 products with 4 vectors. Gelfand's formula.
    """
    matrix = matrix.to(torch.float32)
    vectors = torch.randn(_VECTORS, width, generator=torch.Generator().manual_seed(0))
    log_growth = 0.0
    for step in range(_WARM_UP + _STEPS):
        vectors = matrix.times(vectors)
        norm = float(torch.linalg.vector_norm(vectors))
        if norm == 0.0:
            return 0.0
        vectors = vectors / norm
        if step >= _WARM_UP:
            log_growth += math.log(norm)
    return math.exp(log_growth / _STEPS)


def measure_reservoirs(bank: ReservoirBank, letters: str, most: int = 4) -> dict[str, float]:
    """Measure scale times spectral radius of the square matrices of some letters.

    Args:
        bank: on the CPU.
        letters: which matrices.
        most: matrices that are measured at most, the first ones: the cost stays bounded.

    Returns:
        Radius by key.
    """
    specs = [spec for spec in bank.specs if spec.letter in letters and spec.shape[0] == spec.shape[1]]
    return {
        spec.key: spec.scale * measure_spectral_radius(bank.linear_map(spec.key), spec.shape[1])
        for spec in specs[:most]
    }
