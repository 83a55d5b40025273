"""Write the DeepSpeed configuration of a run, prove the user's raw keys, and merge them over it."""

import difflib
import logging
import os
import warnings
from typing import Any

import torch
from pydantic import ValidationError

from rcdist.config import JobConfig
from rcdist.errors import ConfigError

OWNED_KEYS: dict[str, str] = {
    "train_batch_size": "train.global_batch_tokens",
    "train_micro_batch_size_per_gpu": "train.micro_batch_size",
    "gradient_accumulation_steps": "train.micro_batch_size",
    "gradient_clipping": "optimizer.clip_norm",
    "optimizer": "optimizer.*",
    "scheduler": "schedule.*",
    "bf16.enabled": "train.precision",
    "fp16": "train.precision",
    "torch_autocast": "train.precision",
    "zero_optimization.stage": "train.zero_stage",
    "checkpoint": "checkpoint.*",
}
"""Raw keys that duplicate a setting of ours, and that setting."""

_RELIED_ON: dict[str, tuple[object, str]] = {
    "bf16.check_grad_overflow": (True, "a step whose gradient is not finite is to be skipped, not applied"),
    "bf16.bf16_master_weights_and_grads": (False, "the weights that are trained are float32"),
    "gradient_allreduce_op": ("mean", "the loss is a mean over the tokens of all workers"),
    "managed_gradient_accumulation": (True, "a step is one update"),
}
"""Raw keys that must have one value, because the rest of rcdist relies on it, and why."""

_SECTIONS = frozenset(
    "zero_optimization bf16 data_types comms_logger flops_profiler timers aio tensorboard csv_monitor wandb comet"
    "".split()
)
_SCALARS = frozenset(
    "communication_data_type prescale_gradients gradient_predivide_factor disable_allgather steps_per_print dump_state "
    "wall_clock_breakdown memory_breakdown log_level disable_python_gc zero_allow_untested_optimizer "
    "zero_force_ds_cpu_optimizer gradient_allreduce_op managed_gradient_accumulation".split()
)
"""Raw keys that mean something to data-parallel training; others belong to parts of DeepSpeed that rcdist has no use
for, and DeepSpeed passes over a misspelt one."""

_LARGEST_BUCKET_ELEMENTS = 500_000_000


def max_windows(config: JobConfig, *, if_auto: int = 1) -> int:
    """Return the most windows of one forward pass of one worker; where a worker is still to find out: `if_auto`."""
    return if_auto if config.train.micro_batch_size == "auto" else config.train.micro_batch_size


def split_batch(config: JobConfig, num_workers: int) -> tuple[int, int]:
    """Split the global batch over workers and micro-batches.

    Returns:
        (windows per micro-batch of one worker, micro-batches per step). Their product times `num_workers` may exceed
        the windows of the batch: the loader pads with windows of weight zero.
    """
    per_worker = -(-config.windows_per_step // num_workers)
    num_micro_batches = -(-per_worker // max_windows(config))
    return -(-per_worker // num_micro_batches), num_micro_batches


def is_unwrapped(config: JobConfig) -> bool:
    """Say whether DeepSpeed runs the bare optimizer, without a wrapper that checks and clips gradients."""
    return config.train.zero_stage == 0 and config.train.precision == "fp32"


def has_flat_steps(config: JobConfig) -> bool:
    """Say whether a GPU may run micro-batches as CUDA graphs and exchange gradients once per step.

    Not at stage 3, which gathers weights into memory that moves, nor where DeepSpeed keeps optimizer state elsewhere.
    """
    offloads = "offload_optimizer" in config.deepspeed.get("zero_optimization", {})
    return config.train.cuda_graphs and config.train.zero_stage < 3 and not offloads


def build_deepspeed_config(
    config: JobConfig, num_workers: int, num_trained: int, *, is_flat: bool = False
) -> dict[str, Any]:
    """Write the DeepSpeed configuration.

    Args:
        config: the run.
        num_workers: data-parallel world size.
        num_trained: trained parameters; buckets larger than the model would only waste memory.
        is_flat: `FlatSteps` checks gradients, clips them and skips updates, on the device: DeepSpeed does not.

    Raises:
        ConfigError: a raw key is one that rcdist owns, or "auto" stands where rcdist has no value.
    """
    micro_batch_size, num_micro_batches = split_batch(config, num_workers)
    bucket = max(min(num_trained, _LARGEST_BUCKET_ELEMENTS), 1)
    base: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": micro_batch_size,
        "gradient_accumulation_steps": num_micro_batches,
        # Plain float32 without ZeRO has no check for gradients that are not finite: engine.py checks and clips there.
        "gradient_clipping": 0.0 if is_unwrapped(config) else config.optimizer.clip_norm or 0.0,
        "bf16": {"enabled": config.train.precision == "bf16"},
        "zero_optimization": {
            "stage": config.train.zero_stage,
            "reduce_bucket_size": bucket,
            "allgather_bucket_size": bucket,
        },
        "steps_per_print": None,
        "checkpoint": {"tag_validation": "Ignore"},
    }
    if is_flat:
        base["gradient_clipping"] = 0.0
        base["bf16"]["check_grad_overflow"] = False
        if config.train.zero_stage > 0:
            base["zero_optimization"]["compute_grad_norm"] = False
    _check_owned(config.deepspeed, base, prefix="")
    _check_names(config.deepspeed)
    return _merge(base, config.deepspeed, prefix="")


def check_raw_keys(config: JobConfig) -> None:
    """Let DeepSpeed's own models prove the raw keys; imports DeepSpeed (4 s) if there are any.

    Raises:
        ConfigError: names the key.
    """
    written = build_deepspeed_config(config, num_workers=1, num_trained=1)
    if not config.deepspeed:
        return
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from deepspeed.runtime.config import DeepSpeedConfig
        from deepspeed.runtime.precision_config import DeepSpeedBF16Config
        from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

        models = (("zero_optimization", DeepSpeedZeroConfig), ("bf16", DeepSpeedBF16Config))
        for section, model in models:
            try:
                model(**written[section])
            except ValidationError as error:
                problem = error.errors()[0]
                path = ".".join(["deepspeed", section, *map(str, problem["loc"])])
                rule = f"DeepSpeed refuses it ({problem['msg']})"
                raise ConfigError(path, problem["input"], rule, "See DeepSpeed's configuration reference") from None
        try:
            DeepSpeedConfig(written)
        except Exception as error:  # it raises whatever its parts raise
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            remedy = "See DeepSpeed's configuration reference"
            raise ConfigError("deepspeed", str(config.deepspeed), f"DeepSpeed refuses it ({reason})", remedy) from None


def _check_names(raw: dict[str, Any]) -> None:
    for key, value in raw.items():
        known = sorted({*_SECTIONS, *_SCALARS, *(path.split(".")[0] for path in OWNED_KEYS)})
        if key not in known:
            nearest = difflib.get_close_matches(key, known, 1)
            remedy = f"The nearest one is {nearest[0]}" if nearest else f"Those that it has are {', '.join(known)}"
            raise ConfigError(f"deepspeed.{key}", value, "rcdist has no use for such a key", remedy)
        if key in _SECTIONS and not isinstance(value, dict):
            raise ConfigError(f"deepspeed.{key}", value, "is a section of keys", f"Write {key}: {{key: value}}")


def _check_owned(raw: dict[str, Any], base: dict[str, Any], prefix: str) -> None:
    for key, value in raw.items():
        path = prefix + key
        if path in OWNED_KEYS and value != "auto":
            raise ConfigError(
                f"deepspeed.{path}", value, f"rcdist sets it from {OWNED_KEYS[path]}", f"Set {OWNED_KEYS[path]} instead"
            )
        if path in _RELIED_ON and value not in (_RELIED_ON[path][0], "auto"):
            needed, reason = _RELIED_ON[path]
            raise ConfigError(f"deepspeed.{path}", value, f"rcdist relies on {needed}: {reason}", "Leave it out")
        if isinstance(value, dict):
            _check_owned(value, base.get(key, {}), prefix=f"{path}.")


def _merge(base: dict[str, Any], raw: dict[str, Any], prefix: str) -> dict[str, Any]:
    merged = dict(base)
    for key, value in raw.items():
        if value == "auto":
            if key not in base:
                raise ConfigError(f"deepspeed.{prefix}{key}", value, "rcdist has no value for it", "Give a value")
        elif isinstance(value, dict):
            merged[key] = _merge(base.get(key, {}), value, prefix=f"{prefix}{key}.")
        else:
            merged[key] = value
    return merged
