"""Turn what the steps of one worker measured into records, and charge the ledger, also on disk."""

import json
import resource
import time
from dataclasses import asdict
from pathlib import Path

import torch

from rcdist.config import JobConfig
from rcdist.data.loader import Loader
from rcdist.model.cost import estimate_flops
from rcdist.storage import read_json, try_write
from rcdist.tracking.ledger import Kind, Ledger
from rcdist.tracking.prices import PriceRow
from rcdist.train.energy import EnergyCounter
from rcdist.train.optim import learning_rate_at
from rcdist.train.step_result import StepResult
from rcdist.train.wire import WireMeter

_FILE = "ledger.json"
_EVERY_S = 0.2
"""Seconds between two writings of the ledger."""


def read_ledger(run_dir: Path) -> Ledger:
    """Return what a run was charged so far, by all its jobs; the empty ledger for a new run."""
    found = read_json(run_dir / _FILE)
    return Ledger(**found["ledger"]) if found else Ledger()


class LedgerFile:
    """Keep the ledger on disk beside the checkpoints, because work that is lost with a worker was paid for too.

    Args:
        run_dir: of the run.
        launch: names the job; workers that one job starts again were held, and so paid for, in between.
    """

    def __init__(self, run_dir: Path, launch: float) -> None:
        self._path, self._launch = run_dir / _FILE, launch
        self._written = -_EVERY_S

    def write(self, ledger: Ledger, *, now: bool = False) -> None:
        """Write the ledger, five times a second at most unless `now`; a full disk is passed over."""
        if not now and time.monotonic() - self._written < _EVERY_S:
            return
        self._written = time.monotonic()
        text = json.dumps({"launch": self._launch, "time": time.time(), "ledger": asdict(ledger)})
        try_write(self._path, text, durably=False)  # after a power cut the checkpoint's ledger counts

    def recover(self, ledger: Ledger) -> float:
        """Add what was charged after the checkpoint that `ledger` comes from.

        Returns:
            Wall seconds since then that this job held its workers without charging for them.
        """
        found = read_json(self._path)
        if not found:
            return 0.0
        charged = Ledger(**found["ledger"])
        if charged.device_s > ledger.device_s:
            ledger.lost_device_s = charged.lost_device_s + charged.useful_device_s - ledger.useful_device_s
            kept = ("tokens", "trained_flops", "useful_device_s", "lost_device_s")
            for name in vars(ledger).keys() - set(kept):
                setattr(ledger, name, getattr(charged, name))
        return max(time.time() - found["time"], 0.0) if found["launch"] == self._launch else 0.0


class Meter:
    """Turn what the steps measured into one record every few steps, and charge the ledger.

    Args:
        config: the run.
        price: what a device second costs.
        ledger: charged with all wall time since the worker's loop began, evaluation and saving included.
        wire: counts what this worker hands to collectives.
        world_size: devices paid for.
        device: where the model trains.
        file: of the ledger; rank 0's.
        energy: counts what this worker's device draws; None, or without a counter: the price's power is charged.
    """

    def __init__(
        self,
        config: JobConfig,
        price: PriceRow,
        ledger: Ledger,
        wire: WireMeter,
        world_size: int,
        device: torch.device,
        file: LedgerFile | None = None,
        energy: EnergyCounter | None = None,
    ) -> None:
        self._config = config
        self._price = price
        self._ledger = ledger
        self._wire = wire
        self._world_size = world_size
        self._device = device
        self._flops = estimate_flops(
            config.architecture, activation_checkpointing=config.train.activation_checkpointing
        )
        self._file = file
        self._energy = energy if energy is not None and energy.is_there else None
        self._charged_at = self._step_began = time.perf_counter()
        self._reset()

    def begin_step(self, *, looks_inside: bool) -> None:
        """Start the clock of a step; evaluation, saving and reporting lie between two steps and do not slow it.

        Args:
            looks_inside: search what the step sends for frozen values.
        """
        self._wire.looks_inside = looks_inside
        self._charge(0, useful_s=0.0)
        self._wire.take()
        self._step_began = time.perf_counter()

    def _reset(self) -> None:
        self._step_s = self._data_wait_s = self._loss = 0.0
        self._num_steps = self._tokens = 0
        self._sent_bytes = 0
        self._frozen_bytes: int | None = None
        self._result: StepResult | None = None

    def count_step(self, result: StepResult, loader: Loader) -> None:
        """Add one finished step."""
        step_s = time.perf_counter() - self._step_began
        self._step_s += step_s
        sent = self._wire.take()
        self._sent_bytes += sent.trained + sent.frozen
        if self._wire.looks_inside:
            self._frozen_bytes = sent.frozen
            self._wire.looks_inside = False
        self._data_wait_s += loader.wait_s
        self._loss += result.loss_nats
        self._num_steps += 1
        self._tokens += loader.global_tokens
        self._result = result
        if result.applied:
            self._charge(loader.global_tokens, useful_s=max(step_s - loader.wait_s, 0.0), kind="idle")
        else:
            self._charge(loader.global_tokens, useful_s=0.0, kind="lost")

    def charge(self, kind: Kind, extra_s: float = 0.0) -> None:
        """Charge the time since the last charge, and `extra_s` more, as something that is no step."""
        self._charge(0, useful_s=0.0, kind=kind, extra_s=extra_s)

    def _charge(self, tokens: int, useful_s: float, kind: Kind = "other", extra_s: float = 0.0) -> None:
        now = time.perf_counter()
        self._ledger.charge(
            seconds=now - self._charged_at + extra_s,
            num_devices=self._world_size,
            tokens=tokens,
            flops_per_token=self._flops,
            price=self._price,
            useful_s=useful_s,
            kind=kind,
            joules=None if self._energy is None else 0.0,
        )
        self._charged_at = now
        if self._file is not None:
            self._file.write(self._ledger)

    def take_joules(self) -> float:
        """Return what this worker's device has drawn since the last call, to be added up over the workers."""
        return self._energy.take() if self._energy is not None else 0.0

    def add_joules(self, joules: float) -> None:
        """Charge what all devices have drawn, where they say it."""
        if self._energy is not None:
            self._ledger.kwh += joules / 3.6e6

    def read(self, *, step: int, skipped_steps: int) -> dict[str, float]:
        """Return the record of the steps since the last one, and start the next.

        Args:
            step: optimizer steps done.
            skipped_steps: of these, steps whose update was skipped.
        """
        self._charge(0, useful_s=0.0)
        assert self._result is not None
        tokens_per_s = self._tokens / self._step_s
        config = self._config
        rate = learning_rate_at(step - 1, config.train.steps, config.optimizer, config.schedule)
        record = {
            "train/loss_nats": self._result.loss_nats,
            "train/loss_mean_nats": self._loss / self._num_steps,
            "train/grad_norm": self._result.grad_norm,
            "train/learning_rate": rate,
            "train/tokens": float(self._ledger.tokens),
            "train/skipped_steps": float(skipped_steps),
            "perf/tokens_per_s": tokens_per_s,
            "perf/step_s": self._step_s / self._num_steps,
            "perf/data_wait_s": self._data_wait_s / self._num_steps,
            "perf/mfu": tokens_per_s * self._flops.train / (self._price.peak_flops * self._world_size),
            "wire/bytes_per_step": self._sent_bytes / self._num_steps,
            "memory/peak_bytes": float(_peak_bytes(self._device)),
            **self._ledger.record(),
        }
        if self._frozen_bytes is not None:
            record["wire/frozen_bytes_per_step"] = float(self._frozen_bytes)
        self._reset()
        return record


def _peak_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        # Not what is allocated: a graph's memory is reserved for it, but allocated only while it is captured, which
        # comes before the optimizer's moments.
        return torch.cuda.max_memory_reserved(device)
    # ru_maxrss is in KiB on Linux: the peak resident size of this worker, imports included.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
