"""Drive DeepSpeed ZeRO: a training step, an evaluation, the state as files and back."""

import contextlib
import logging
import math
import os
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from rcdist.checkpoint.manifest import ZERO_FOLDER
from rcdist.checkpoint.staging import Staging
from rcdist.checkpoint.untrusted import expected_classes, pickle_enums_by_value
from rcdist.config import JobConfig
from rcdist.data.loader import MicroBatch
from rcdist.train.deepspeed_config import build_deepspeed_config, has_flat_steps
from rcdist.train.flat_steps import FlatSteps
from rcdist.train.hooked_steps import HookedSteps
from rcdist.train.optim import DECAY_GROUP, build_parameter_groups
from rcdist.train.step_result import StepResult

_OTHER_BYTES = 2**24
"""Of a snapshot: counters, names, settings."""


class Engine:
    """Wrap a model in DeepSpeed ZeRO with AdamW.

    Args:
        model: module whose forward takes (tokens, starts, targets, weights) and returns the summed loss in nats.
        config: the run.
        world_size: workers in the already initialised process group.
        device: where the model trains.
        is_flat: take `FlatSteps`. None: on a GPU, where the run allows it.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        config: JobConfig,
        *,
        world_size: int,
        device: torch.device,
        is_flat: bool | None = None,
    ) -> None:
        deepspeed = _import_deepspeed(device)
        pickle_enums_by_value()
        settings = config.optimizer
        groups = build_parameter_groups(model, settings.weight_decay)
        num_trained = sum(p.numel() for group in groups for p in group["params"])
        self._optimizer = torch.optim.AdamW(
            groups,
            lr=settings.learning_rate,
            betas=(settings.beta1, settings.beta2),
            eps=settings.eps,
            fused=True,
        )
        self.device = device
        self._zero_stage = config.train.zero_stage
        if is_flat is None:
            is_flat = device.type == "cuda" and has_flat_steps(config)
        ds_config = build_deepspeed_config(config, world_size, num_trained, is_flat=is_flat)
        self.num_micro_batches: int = ds_config["gradient_accumulation_steps"]
        with warnings.catch_warnings(), _without_effect(self._optimizer), _lean_imports():
            warnings.simplefilter("ignore")
            self._engine, *_ = deepspeed.initialize(
                model=model.to(device), optimizer=self._optimizer, config=ds_config, dist_init_required=False
            )
        self.steps: FlatSteps | HookedSteps = (
            FlatSteps(self._engine, self._optimizer, config, world_size, device)
            if is_flat
            else HookedSteps(self._engine, config, world_size, device)
        )
        self._staging = Staging(device, self._expected_bytes())
        self.before_update(self._staging.protect)

    @property
    def module(self) -> torch.nn.Module:
        """Return the wrapped model; at stage 3 its parameters are partitioned."""
        return self._engine.module

    def train_step(
        self,
        micro_batches: Sequence[MicroBatch],
        global_tokens: int,
        *,
        learning_rate: float,
        weight_decay: float,
        loss_limit: float = math.inf,
        also_sum: Sequence[float] = (),
    ) -> StepResult:
        """Run forward and backward over the micro-batches of this rank and update once.

        Args:
            micro_batches: equally many, of equal shape, on every rank.
            global_tokens: real target tokens of the global batch over all ranks; the loss is their mean.
            learning_rate: for every group.
            weight_decay: for the matrices.
            loss_limit: nats per token; a step with more is not applied.
            also_sum: numbers of this rank that are added up over the ranks together with the loss.
        """
        assert len(micro_batches) == self.num_micro_batches
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate
            if group["name"] == DECAY_GROUP:
                group["weight_decay"] = weight_decay
        return self.steps.train(micro_batches, global_tokens, loss_limit, also_sum)

    def _expected_bytes(self) -> int:
        """Return what a snapshot of this rank holds: float32 weights and two moments, and on rank 0 the model."""
        optimized = sum(p.numel() for group in self._optimizer.param_groups for p in group["params"])
        model = sum(p.numel() * p.element_size() for p in self.module.parameters()) if dist.get_rank() == 0 else 0
        return 12 * optimized + model + _OTHER_BYTES

    def close(self) -> None:
        """Let go of DeepSpeed's hooks, which keep model and optimizer alive in a process that trains once more."""
        self._staging.close()
        self._engine.destroy()

    def before_update(self, hook: Callable[[], None]) -> None:
        """Call `hook` each time the optimizer is about to change this rank's share of the weights."""
        self._optimizer.register_step_pre_hook(lambda *_: hook())

    @torch.no_grad()
    def evaluate_sum(self, batch: MicroBatch, *, is_observed: bool = False) -> torch.Tensor:
        """Return the summed loss in nats of one batch of this rank, float64, without gradient, on the device.

        Args:
            batch: of any shape.
            is_observed: the module's own code is to run, because somebody in it looks on.
        """
        return self.steps.evaluate(batch, is_observed=is_observed)

    @contextlib.contextmanager
    def gathered(self, parameter: torch.nn.Parameter) -> Iterator[None]:
        """Gather a parameter on every rank while open, for reading; a collective call at stage 3."""
        if self._zero_stage < 3:
            yield
            return
        from deepspeed.runtime.zero import GatheredParameters

        with GatheredParameters([parameter]):
            yield

    def snapshot(self) -> dict[str, Any]:
        """Copy this rank's share of the state into host memory; every rank calls it.

        Returns:
            What is to be written with torch.save, by path inside a checkpoint, once `wait_for_snapshot` has returned;
            it lasts until the next call.
        """
        real, files = self._engine.checkpoint_engine, {}

        def gather(to_host: Callable[[Any], Any]) -> None:
            capture = self._engine.checkpoint_engine = _Capture(real, to_host)
            # DeepSpeed also copies a script there, which nobody needs.
            with tempfile.TemporaryDirectory() as folder:
                self._engine.save_checkpoint(folder, tag=ZERO_FOLDER, save_latest=False, exclude_frozen_parameters=True)
                files.update({Path(path).relative_to(folder).as_posix(): s for path, s in capture.files.items()})

        try:
            self._staging.copy(gather)
        finally:
            self._engine.checkpoint_engine = real
        return files

    def wait_for_snapshot(self) -> None:
        """Wait, in any thread, until the last snapshot holds its values: a GPU copies them while it trains on."""
        self._staging.wait()

    def restore(self, folder: Path, *, is_universal: bool = False) -> None:
        """Read the state from a complete checkpoint: of an equal world size, or in the form of checkpoint/resize.py."""
        # DeepSpeed's universal load at stage 3 gives all groups the settings of the first, weight decay included, and
        # one and the same tensor as their step counter, which then counts each step once per group.
        settings = [{k: v for k, v in group.items() if k != "params"} for group in self._optimizer.param_groups]
        # DeepSpeed asks for this when it loads, not when it is built.
        self._engine._config.load_universal_checkpoint = is_universal
        real = self._engine.checkpoint_engine
        self._engine.checkpoint_engine = _RestrictedLoad(real)
        try:
            loaded, _ = self._engine.load_checkpoint(str(folder), tag=ZERO_FOLDER)
        finally:
            self._engine.checkpoint_engine = real
            self._engine._config.load_universal_checkpoint = False
        assert loaded is not None
        for group, own in zip(self._optimizer.param_groups, settings, strict=True):
            group.update(own)
        for parameter, state in self._optimizer.state.items():
            if isinstance(state.get("step"), torch.Tensor):
                # The universal load leaves it on the CPU, which fused AdamW refuses on a GPU.
                state["step"] = state["step"].to(parameter.device, copy=True)
        self.steps.weights_changed()


class _Capture:
    """Stand for DeepSpeed's checkpoint engine while it saves, and keep copies of what it would write."""

    def __init__(self, real: Any, to_host: Callable[[Any], Any]) -> None:
        self._real, self._to_host = real, to_host
        self.files: dict[str, Any] = {}

    def save(self, state_dict: Any, path: str) -> None:
        self.files[path] = self._to_host(state_dict)

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        """Do nothing."""

    def preserves_storage_sharing(self) -> bool:
        """Say that DeepSpeed need not copy tensors first."""
        return False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)


class _RestrictedLoad:
    """Stand for DeepSpeed's checkpoint engine while it loads, and unpickle nothing but tensors and what it expects."""

    def __init__(self, real: Any) -> None:
        self._real = real

    def load(self, path: str, map_location: Any = None) -> Any:
        with torch.serialization.safe_globals(expected_classes()):
            return torch.load(path, map_location=map_location, weights_only=True)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)


@contextlib.contextmanager
def _without_effect(optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Let a step that DeepSpeed makes when it is built, to allocate the optimizer's state, change and count nothing."""
    rates = [group["lr"] for group in optimizer.param_groups]
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    yield
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    for state in optimizer.state.values():
        if isinstance(state.get("step"), torch.Tensor):
            state["step"].zero_()


@contextlib.contextmanager
def _lean_imports() -> Iterator[None]:
    """Keep DeepSpeed from importing what serves nothing here: MLflow for its autotuner, Inductor for Muon; 2 s."""
    has_mlflow, dynamo = "mlflow" in sys.modules, os.environ.get("TORCHDYNAMO_DISABLE")
    if not has_mlflow:
        sys.modules["mlflow"] = None  # type: ignore[assignment]
    os.environ["TORCHDYNAMO_DISABLE"] = "1"
    try:
        yield
    finally:
        if not has_mlflow:
            del sys.modules["mlflow"]
        del os.environ["TORCHDYNAMO_DISABLE"]
        if dynamo is not None:
            os.environ["TORCHDYNAMO_DISABLE"] = dynamo
        elif "torch._dynamo.config" in sys.modules:
            settings: Any = sys.modules["torch._dynamo.config"]
            settings.disable = False  # some versions have read the variable


def _import_deepspeed(device: torch.device) -> Any:
    """Import DeepSpeed for this kind of device, quietly and without compiling anything.

    On CPU DeepSpeed would compile a shared-memory all-reduce at start (40 s, needs a C++ compiler and ninja, and hangs
    on the lock of a build that was killed); gloo does the same work, so the extension is switched off.
    """
    if device.type == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    with warnings.catch_warnings(), _lean_imports():
        warnings.simplefilter("ignore")
        import deepspeed
        import deepspeed.ops
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    if device.type == "cpu":
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(dist_backend=dist.get_backend(), dist_init_required=False)
    return deepspeed
