"""Training steps on a GPU: micro-batches replayed as CUDA graphs, gradients exchanged once, nothing read meanwhile."""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from rcdist.config import JobConfig
from rcdist.data.loader import MicroBatch
from rcdist.ops.replay import Replay
from rcdist.ops.weights import WeightsQuantisedOnce
from rcdist.train.flat_gradients import FlatGradients, plain_layouts, zero_layouts
from rcdist.train.step_result import StepResult


class FlatSteps:
    """Run micro-batches without DeepSpeed's hooks, and let DeepSpeed update from the flat sum of their gradients.

    Forward and backward are one graph per shape of a micro-batch. Its inputs (document starts and padding among them)
    and its results lie in tensors of their own. Gradients are taken with respect to other tensors over the memory of
    the weights, which no hook of DeepSpeed's knows. Whether a step is applied, and how far its gradient is clipped, is
    decided on the device, and read once at the end.

    Args:
        engine: DeepSpeed's, of stage 0, 1 or 2.
        optimizer: the fused AdamW that DeepSpeed steps.
        config: the run.
        world_size: workers.
        device: where the model trains.
    """

    def __init__(
        self,
        engine: Any,
        optimizer: torch.optim.Optimizer,
        config: JobConfig,
        world_size: int,
        device: torch.device,
    ) -> None:
        self._engine, self._optimizer, self._world_size, self._device = engine, optimizer, world_size, device
        self._module: torch.nn.Module = engine.module
        self._is_partitioned, self._clip_norm = config.train.zero_stage > 0, config.optimizer.clip_norm
        layouts = zero_layouts(engine.optimizer) if self._is_partitioned else plain_layouts(optimizer.param_groups)
        if not self._is_partitioned and config.train.precision == "bf16":
            # DeepSpeed's wrapper has put float32 copies into the groups of AdamW.
            groups = [{"params": group} for group in engine.optimizer.fp16_groups]
            layouts = plain_layouts(groups)
        self._gradients = FlatGradients(layouts, device)
        self._leaves: dict[str, Tensor] = {}
        self._take_leaves()
        self._wire_dtype: torch.dtype = engine.communication_data_type
        self._replay = Replay(device)
        self._weights, self._are_weights_new = WeightsQuantisedOnce(), True
        self._scale = torch.ones((), device=device)
        self._loss = torch.zeros((), dtype=torch.float64, device=device)

    @property
    def num_graphs(self) -> int:
        """Return how many CUDA graphs there are by now."""
        return self._replay.num_graphs

    def train(
        self, micro_batches: Sequence[MicroBatch], global_tokens: int, loss_limit: float, also_sum: Sequence[float]
    ) -> StepResult:
        """Run forward and backward over the micro-batches and update once; see `Engine.train_step`."""
        # From the host while the device has nothing to do yet; later it would have to wait for it.
        shared = torch.tensor([0.0, 0.0, *also_sum], dtype=torch.float64, device=self._device)
        moved = [self._move(batch) for batch in micro_batches]
        self._scale.fill_(1.0 / global_tokens)
        self._loss.zero_()
        self._gradients.clear()
        self._round_weights()
        with self._weights:
            for tensors in moved:
                self._replay.run_on("train", self._train_on, tensors)
        parts = self._exchange()
        norms = torch.stack([torch.linalg.vector_norm(part) for part in parts])
        # Without partitions every worker has all of it: one of them counts.
        counts = self._is_partitioned or dist.get_rank() == 0
        shared[0], shared[1] = self._loss, norms.double().square().sum() * counts
        dist.all_reduce(shared)
        norm, loss = shared[1].sqrt(), shared[0] / global_tokens
        is_applied = norm.isfinite() & loss.isfinite() & (loss <= loss_limit)
        self._update(parts, norm, is_applied)
        norm = torch.where(is_applied, norm, math.inf)
        # The one value that the host waits for.
        loss_nats, grad_norm, applied, *summed = torch.stack([loss, norm, is_applied.double(), *shared[2:]]).tolist()
        return StepResult(loss_nats, grad_norm, bool(applied), tuple(summed))

    def _exchange(self) -> list[Tensor]:
        """Sum the gradients over the workers once; return what this one's norm is taken of."""
        if self._is_partitioned:
            return self._gradients.share_out(self._wire_dtype, self._world_size)
        return self._gradients.sum_over_workers(self._wire_dtype, self._world_size)

    def _update(self, parts: list[Tensor], norm: Tensor, is_applied: Tensor) -> None:
        """Let DeepSpeed step; AdamW's kernel clips as it reads, and leaves everything alone where it is told to."""
        optimizer: Any = self._optimizer
        optimizer.found_inf = (~is_applied).float()
        if self._clip_norm is not None:
            optimizer.grad_scale = ((norm + 1e-6) / self._clip_norm).clamp_(min=1.0).float()
        if self._is_partitioned:
            for i, part in enumerate(parts):
                self._engine.optimizer.averaged_gradients[i] = _Partition(part)
        else:
            self._gradients.hand_over()
        self._engine.micro_steps += self._engine.gradient_accumulation_steps() - 1
        self._engine.step()
        self._are_weights_new = True

    def _move(self, batch: MicroBatch) -> tuple[Tensor, ...]:
        return tuple(tensor.to(self._device, non_blocking=True) for tensor in batch.tensors())

    def _train_on(self, *inputs: Tensor) -> None:
        loss = self._forward(inputs)
        self._gradients.add(torch.autograd.grad(loss * self._scale, self._leaves_in_order, allow_unused=True))
        self._loss += loss.detach()

    def _evaluate_on(self, *inputs: Tensor) -> None:
        self._loss.copy_(self._forward(inputs))

    def _forward(self, inputs: tuple[Tensor, ...]) -> Tensor:
        loss: Tensor = torch.func.functional_call(self._module, self._leaves, inputs)
        return loss

    def _take_leaves(self) -> None:
        """Make a leaf of each weight: what accumulates its own gradient belongs to the stream that hooks were set in,
        which a graph may not wait for."""
        self._leaves = {name: p.detach().requires_grad_() for name, p in self._module.named_parameters()}
        by_weight = {id(p): self._leaves[name] for name, p in self._module.named_parameters()}
        self._leaves_in_order = [by_weight[id(p)] for p in self._gradients.parameters]

    def _round_weights(self) -> None:
        """Round the weights again, to where graphs read them, if they have changed."""
        if self._are_weights_new:
            self._replay.run("weights", self._weights.round_again)
            self._are_weights_new = False

    @torch.no_grad()
    def evaluate(self, batch: MicroBatch, *, is_observed: bool = False) -> Tensor:
        """Return the summed loss in nats of one batch, float64.

        Args:
            batch: of any shape.
            is_observed: somebody in the module looks on, so it must run itself.
        """
        self._round_weights()
        with self._weights:
            tensors = self._move(batch)
            if is_observed:
                self._evaluate_on(*tensors)
            else:
                self._replay.run_on("evaluate", self._evaluate_on, tensors)
        return self._loss.clone()

    def weights_changed(self) -> None:
        """Forget whatever depends on the weights, or on where they lie: they were read from a checkpoint."""
        self._replay.forget()
        self._take_leaves()
        self._weights, self._are_weights_new = WeightsQuantisedOnce(), True


class _Partition(list[Tensor]):
    """Hand DeepSpeed a partition of the gradient that is flat already, so that it copies nothing."""

    def __init__(self, flat_partition: Tensor) -> None:
        super().__init__([flat_partition])
        self.flat_partition = flat_partition
