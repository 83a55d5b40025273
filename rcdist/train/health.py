"""Detect what goes wrong silently: dead or flickering ternary weights, saturated gates, flat states, damaged bytes."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor

from rcdist.data.loader import MicroBatch
from rcdist.errors import ClusterError
from rcdist.model.bitlinear import BitLinear
from rcdist.model.mlgru import MLGRU
from rcdist.model.reservoir import ReservoirBank
from rcdist.ops.quantise import absmean, ternary_codes
from rcdist.train.broadcast import compare_matrix
from rcdist.train.engine import Engine

_SAMPLE = 65_536
"""Weights of one matrix that are compared from one reading to the next."""

_STATES = 256
"""State vectors of one block whose effective rank is measured."""

_SATURATED = 0.01
"""A forget gate nearer than this to 0 or 1 counts as saturated."""


class Health:
    """Measure the health of weights, gates, states and frozen bytes every few steps.

    Cost of a reading: one forward pass over one micro-batch; for each trained matrix its mean absolute value (at
    ZeRO stage 3 one gather of it) and 65,536 codes; for each block the eigenvalues of a 256 x 256 matrix; the
    digest of one frozen matrix, in turn. Memory: one byte per compared weight.

    Args:
        engine: the model under training.
        bank: its frozen matrices, proved right.
    """

    def __init__(self, engine: Engine, bank: ReservoirBank) -> None:
        self._engine, self._bank = engine, bank
        self._digests = bank.digests()
        self._readings = 0
        self.damage: ClusterError | None = None
        """What the last reading has found wrong with a frozen matrix: the run must end, once that is recorded."""
        modules = dict(engine.module.named_modules())
        self._trained = {name: module for name, module in modules.items() if isinstance(module, BitLinear)}
        self._mixers = {name.rpartition(".")[0]: m for name, m in modules.items() if isinstance(m, MLGRU)}
        self._codes: dict[str, Tensor] = {}

    def read(self, batch: MicroBatch) -> dict[str, float]:
        """Return one reading; a collective call, of which rank 0's result counts.

        Args:
            batch: of this rank; gates and states are measured on it.
        """
        record: dict[str, float] = {}
        if self._digests:
            keys = list(self._digests)
            key = keys[self._readings % len(keys)]
            self.damage = compare_matrix(self._bank, key, self._digests[key])
            record["reservoir/digest_ok"] = float(self.damage is None)
        self._readings += 1
        for name, module in self._trained.items():
            with self._engine.gathered(module.weight):
                if dist.get_rank() == 0:
                    record |= self._read_matrix(name, module.weight)
        with self._observed(record):
            self._engine.evaluate_sum(batch, is_observed=True)
        for whole in ("ternary/zero_fraction", "ternary/flip_rate", "gate/saturation", "reservoir/effective_rank"):
            parts = [value for name, value in record.items() if name.startswith(whole + "/")]
            if parts:
                record[whole] = sum(parts) / len(parts)
        return record

    def _read_matrix(self, name: str, weight: Tensor) -> dict[str, float]:
        stride = max(weight.numel() // _SAMPLE, 1)
        codes = sample_codes(weight, stride)
        record = {f"ternary/zero_fraction/{name}": float((codes == 0).double().mean())}
        before = self._codes.get(name)
        if before is not None:
            record[f"ternary/flip_rate/{name}"] = float((codes != before).double().mean())
        self._codes[name] = codes
        return record

    @contextmanager
    def _observed(self, record: dict[str, float]) -> Iterator[None]:
        """Let every mixer report its gates and states into `record` while open, on rank 0."""

        def observer_of(name: str, mixer: MLGRU) -> None:
            def observe(f_BTD: Tensor, h_BTD: Tensor) -> None:
                if mixer.leak_rate == "trained":
                    record[f"gate/saturation/{name}"] = saturation(f_BTD)
                record[f"reservoir/effective_rank/{name}"] = effective_rank(h_BTD.flatten(0, 1))

            mixer.observer = observe

        if dist.get_rank() == 0:
            for name, mixer in self._mixers.items():
                observer_of(name, mixer)
        try:
            yield
        finally:
            for mixer in self._mixers.values():
                mixer.observer = None


@torch.no_grad()
def sample_codes(weight: Tensor, stride: int) -> Tensor:
    """Return every stride-th ternary code of a matrix as the forward pass rounds it, int8 on the CPU."""
    return ternary_codes(weight.flatten()[::stride], absmean(weight)).cpu()


def saturation(f: Tensor) -> float:
    """Return the share of gate values within 0.01 of 0 or 1."""
    return float(((f < _SATURATED) | (f > 1 - _SATURATED)).double().mean())


@torch.no_grad()
def effective_rank(states_MD: Tensor) -> float:
    """Return exp of the entropy of the normalised singular values of up to 256 evenly spaced states.

    1: all states lie on one line; min(256, D): they fill the space evenly. 0 when every state is 0.
    Roy and Vetterli 2007, "The effective rank: a measure of effective dimensionality", definition 1.
    """
    picked = states_MD[:: max(len(states_MD) // _STATES, 1)][:_STATES].double()
    values = torch.linalg.eigvalsh(picked @ picked.t()).clamp_(min=0).sqrt_()
    total = values.sum()
    if not total > 0:
        return 0.0
    share = values / total
    return float(torch.special.entr(share).sum().exp())
