"""Training steps by DeepSpeed's own hooks, which take each gradient as autograd makes it: on CPUs and at stage 3."""

import contextlib
import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist

from rcdist.config import JobConfig
from rcdist.data.loader import MicroBatch
from rcdist.ops.weights import WeightsQuantisedOnce
from rcdist.train.deepspeed_config import is_unwrapped
from rcdist.train.step_result import StepResult


class HookedSteps:
    """Let DeepSpeed run forward, backward and update.

    Args:
        engine: DeepSpeed's.
        config: the run.
        world_size: workers.
        device: where the model trains.
    """

    def __init__(self, engine: Any, config: JobConfig, world_size: int, device: torch.device) -> None:
        self._engine, self._world_size, self._device = engine, world_size, device
        self._zero_stage, self._is_unwrapped = config.train.zero_stage, is_unwrapped(config)
        self._clip_norm = config.optimizer.clip_norm

    def train(
        self, micro_batches: Sequence[MicroBatch], global_tokens: int, loss_limit: float, also_sum: Sequence[float]
    ) -> StepResult:
        """Run forward and backward over the micro-batches and update once; see `Engine.train_step`."""
        self._engine.train()
        # DeepSpeed averages over ranks and divides by the accumulation steps; undoing both leaves sum / global_tokens.
        scale = self._world_size * len(micro_batches) / global_tokens
        shared = torch.tensor([0.0, *also_sum], dtype=torch.float64, device=self._device)
        grad_norm: float | None = None
        with self._weights_kept():
            for i, batch in enumerate(micro_batches):
                loss = self._forward(batch)
                shared[0] += loss.detach()
                is_last = i + 1 == len(micro_batches)
                if is_last:
                    # Before the last backward pass, and without reading the value, which would
                    # synchronise a GPU: a gradient that is not finite makes every rank skip the update, at every stage.
                    dist.all_reduce(shared)
                    loss = loss * torch.where(shared[0] / global_tokens > loss_limit, math.nan, 1.0).to(loss.dtype)
                self._engine.backward(loss * scale)
                if is_last and self._is_unwrapped:
                    grad_norm = self._clip_or_drop()
                self._engine.step()
        if grad_norm is None:
            grad_norm = float(self._engine.get_global_grad_norm())
        applied = math.isfinite(grad_norm) and self._engine.was_step_applied()
        loss_sum, *summed = shared.tolist()
        return StepResult(loss_sum / global_tokens, grad_norm, applied, tuple(summed))

    def _weights_kept(self) -> contextlib.AbstractContextManager[None]:
        """Quantise the weights once per optimizer step; at stage 3 they are complete only while gathered."""
        return contextlib.nullcontext() if self._zero_stage == 3 else WeightsQuantisedOnce()

    def _forward(self, batch: MicroBatch) -> torch.Tensor:
        return self._engine(*(tensor.to(self._device, non_blocking=True) for tensor in batch.tensors()))

    def _clip_or_drop(self) -> float:
        """Clip the reduced gradient and return its norm; drop it when it is not finite, so that AdamW does nothing."""
        parameters = [p for p in self._engine.module.parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters])
        if not torch.isfinite(norm):
            for parameter in parameters:
                parameter.grad = None
        elif self._clip_norm is not None:
            torch.nn.utils.clip_grads_with_norm_(parameters, self._clip_norm, norm)
        return float(norm)

    def evaluate(self, batch: MicroBatch, *, is_observed: bool = False) -> torch.Tensor:
        """Return the summed loss in nats of one batch, float64."""
        self._engine.eval()
        return self._forward(batch).double()

    def weights_changed(self) -> None:
        """Do nothing: whatever depends on the weights is computed again in each step."""
