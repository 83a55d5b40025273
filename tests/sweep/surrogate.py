"""A recorded surrogate of the default space: what 63 real trials of it came to, smoothed between them."""

import csv
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

RECORDED = Path(__file__).with_name("surrogate.csv")
"""The trials of a random search of the default space (75 steps of 4,096 tokens, one seed, two-core CPU): what was
picked, and held-out bits per byte at the end."""

_NOISE = 0.6
"""Standard deviation of what the features do not explain, other seeds included, over that of all trials."""


def _features(values: Mapping[str, Any]) -> list[float]:
    """Describe a trial by how much of each matrix it freezes, of what, and how strong."""
    share = {"x": 1.0, "T x": 0.5, "T x x T": 0.5}[values["reservoir.plan.pattern"]]
    letters, topology = values["reservoir.plan.letters"], values["reservoir.topology"]
    by_letter = topology if isinstance(topology, dict) else dict.fromkeys("cgoGU", topology)
    strength = math.log(float(values["reservoir.input_scaling"]))
    row = [share * (letter in letters) for letter in "cgoGU"]
    row += [share * sum(by_letter[letter] == kind for letter in letters) / 5 for kind in ("hadamard", "block")]
    row += [share * (values.get("reservoir.plan.share") == "a"), share * strength, share * strength**2]
    row += [float(values.get("reservoir.output_gate") == "none"), float(values["reservoir.plan.pattern"] == "T x x T")]
    return row


class Surrogate:
    """Predict bits per byte by a Gaussian process over the recorded trials: its mean, the same every time."""

    def __init__(self) -> None:
        with RECORDED.open() as file:
            rows = list(csv.DictReader(file))
        picked = [{name: _parse(text) for name, text in row.items() if text} for row in rows]
        features = np.array([_features(values) for values in picked])
        quality = np.array([float(row["eval/bits_per_byte"]) for row in rows])
        self._centre, self._scale = features.mean(axis=0), features.std(axis=0) + 1e-9
        self._points = (features - self._centre) / self._scale
        self._mean, self._spread = quality.mean(), quality.std()
        kernel = self._kernel(self._points) + _NOISE**2 * np.eye(len(quality))
        self._weights = np.linalg.solve(kernel, (quality - self._mean) / self._spread)

    def _kernel(self, points: np.ndarray) -> np.ndarray:
        squares = ((points[:, None] - self._points[None]) ** 2).sum(axis=2) / points.shape[1]
        return np.asarray(np.exp(-squares))

    def predict(self, values: Mapping[str, Any]) -> float:
        """Return the bits per byte of what a sampler has picked."""
        point = (np.array([_features(values)]) - self._centre) / self._scale
        return float(self._mean + self._spread * (self._kernel(point) @ self._weights)[0])


def _parse(text: str) -> Any:
    import ast

    return ast.literal_eval(text) if text.startswith("{") else text
