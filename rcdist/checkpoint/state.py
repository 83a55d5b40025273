"""LoopState: what a training run is between two steps, besides its tensors."""

from dataclasses import dataclass, field


@dataclass
class SpikeState:
    """Hold what the guard against loss spikes remembers, so that a resumed run decides alike.

    Attributes:
        losses: of the newest applied steps, nats per token.
        skipped: recent steps whose update was skipped.
        rollbacks: how often training went back to a checkpoint.
        returned_to: the steps of these checkpoints.
    """

    losses: list[float] = field(default_factory=list)
    skipped: list[int] = field(default_factory=list)
    rollbacks: int = 0
    returned_to: list[int] = field(default_factory=list)


@dataclass
class LoopState:
    """Hold what must survive besides tensors and ledger.

    Attributes:
        step: optimizer steps done.
        skipped_steps: of these, steps whose update was skipped.
        cursor: global windows consumed, the state of the data loader.
        spikes: see SpikeState.
        records: records since the checkpoint before, and a few more, each with step and timestamp_ms: a log that was
            cut off is completed from them.
    """

    step: int = 0
    skipped_steps: int = 0
    cursor: int = 0
    spikes: SpikeState = field(default_factory=SpikeState)
    records: list[dict[str, float]] = field(default_factory=list)
