"""Ledger: what a run has used so far, in tokens, FLOPs, device seconds, money and energy."""

from dataclasses import dataclass
from typing import Literal, Protocol

from rcdist.tracking.prices import PriceRow

Kind = Literal["startup", "checkpoint", "idle", "lost", "other"]


class FlopsRates(Protocol):
    """Give FLOPs per token; rcdist.model.cost.FlopsPerToken has this shape."""

    @property
    def train(self) -> int:
        """Return FLOPs per token of forward and backward: 6 per trained weight, 4 per frozen one."""

    @property
    def hardware(self) -> int:
        """Return `train` plus what is computed again."""


@dataclass
class Ledger:
    """Add up what a run uses, over all workers and since step 0.

    It is saved in every checkpoint, so that a resumed run goes on counting. Device seconds are charged whether or
    not they bring tokens: start-up, evaluation, saving and lost work are charges with no useful second.

    Attributes:
        tokens: tokens trained on.
        trained_flops: FLOPs that training on them needs.
        hardware_flops: FLOPs that were computed, recomputation included.
        device_s: device seconds paid for.
        useful_device_s: of these, device seconds inside optimizer steps that count.
        startup_device_s: of these, from a worker's start to its first step.
        checkpoint_device_s: of these, spent waiting for a checkpoint.
        lost_device_s: of these, inside steps that were lost with a worker, skipped, or taken back. The rest:
            evaluation, readings, records.
        idle_device_s: of these, held without work: waiting for data, and from a failure to the workers' next start.
        usd: money.
        kwh: energy: of GPUs as measured, where they say it, else at the power stated in the price table.
        worker_starts: how often workers were started.
        preemptions: notices that a node is about to be taken away.
    """

    tokens: int = 0
    trained_flops: int = 0
    hardware_flops: int = 0
    device_s: float = 0.0
    useful_device_s: float = 0.0
    startup_device_s: float = 0.0
    checkpoint_device_s: float = 0.0
    lost_device_s: float = 0.0
    idle_device_s: float = 0.0
    usd: float = 0.0
    kwh: float = 0.0
    worker_starts: int = 0
    preemptions: int = 0

    def charge(
        self,
        *,
        seconds: float,
        num_devices: int,
        tokens: int,
        flops_per_token: FlopsRates,
        price: PriceRow,
        useful_s: float | None = None,
        kind: Kind = "other",
        joules: float | None = None,
    ) -> None:
        """Add a stretch of wall time.

        Args:
            seconds: wall time, not charged before.
            num_devices: devices paid for during it.
            tokens: tokens trained on in it, over all workers.
            flops_per_token: cost of one of them.
            price: price and power of one device.
            useful_s: part of `seconds` inside steps that count; None: all of it when it brought tokens, else none.
            kind: what the rest of it was.
            joules: energy that all devices took; None: the stated power's.
        """
        assert min(seconds, num_devices, tokens) >= 0, (seconds, num_devices, tokens)
        if useful_s is None:
            useful_s = seconds if tokens else 0.0
        assert 0 <= useful_s <= seconds, (useful_s, seconds)
        device_s = seconds * num_devices
        self.tokens += tokens
        self.trained_flops += tokens * flops_per_token.train
        self.hardware_flops += tokens * flops_per_token.hardware
        self.device_s += device_s
        self.useful_device_s += useful_s * num_devices
        if kind != "other":
            name = f"{kind}_device_s"
            setattr(self, name, getattr(self, name) + device_s - useful_s * num_devices)
        self.usd += device_s * price.usd_per_device_s
        self.kwh += (device_s * price.watts if joules is None else joules) / 3.6e6

    def record(self) -> dict[str, float]:
        """Return the cost/ metrics, and what cost the run its workers."""
        return {
            "cost/device_s": self.device_s,
            "cost/usd": self.usd,
            "cost/kwh": self.kwh,
            "cost/goodput": self.useful_device_s / self.device_s if self.device_s else 0.0,
            "cost/startup_device_s": self.startup_device_s,
            "cost/checkpoint_device_s": self.checkpoint_device_s,
            "cost/lost_device_s": self.lost_device_s,
            "cost/idle_device_s": self.idle_device_s,
            "cost/trained_flops": float(self.trained_flops),
            "cost/hardware_flops": float(self.hardware_flops),
            "run/worker_starts": float(self.worker_starts),
            "run/preemptions": float(self.preemptions),
        }

    def lose_since(self, before: "Ledger") -> None:
        """Count the steps since an earlier ledger of this run as lost: their work was taken back."""
        self.lost_device_s += self.useful_device_s - before.useful_device_s
        self.useful_device_s = before.useful_device_s

    def load(self, other: "Ledger") -> None:
        """Go on from the figures of another ledger."""
        vars(self).update(vars(other))
