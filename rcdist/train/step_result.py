"""What one optimizer step measured."""

from dataclasses import dataclass


@dataclass(frozen=True)
class StepResult:
    """Hold what one optimizer step measured, equal on every rank.

    Attributes:
        loss_nats: mean loss per real target token of the global batch, in nats.
        grad_norm: global 2-norm of the gradient before clipping; inf or NaN when the step was skipped.
        applied: False when the update was skipped: loss or gradient was not finite, or the loss above its limit.
        summed: the numbers of `also_sum`, added up over the ranks.
    """

    loss_nats: float
    grad_norm: float
    applied: bool
    summed: tuple[float, ...] = ()
