"""Write the DeepSpeed configuration of a run, prove the user's raw keys, and merge them over it."""

import importlib.util
import logging
import os
import warnings
from typing import Any

import torch
from pydantic import ValidationError

from rcdist.config import JobConfig
from rcdist.errors import ConfigError
from rcdist.train.deepspeed_keys import check_keys

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

_PACKAGES = {"tensorboard": "tensorboard", "wandb": "wandb", "comet": "comet_ml"}
"""What DeepSpeed imports in the workers for a section that is enabled."""

_REFERENCE = "See DeepSpeed's configuration reference"
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
        ConfigError: a raw key is one that rcdist owns or has no use for, a value cannot be right, or "auto" stands
            where rcdist has none.
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
        # It waits for the device before and after each pass, from the third step on: no graph can be captured then.
        "timers": {"throughput": {"enabled": False}},
        "checkpoint": {"tag_validation": "Ignore"},
    }
    if is_flat:
        base["gradient_clipping"] = 0.0
        base["bf16"]["check_grad_overflow"] = False
        if config.train.zero_stage > 0:
            base["zero_optimization"]["compute_grad_norm"] = False
    _check_owned(config.deepspeed, base, prefix="")
    return check_keys(_merge(base, config.deepspeed, prefix=""))


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
                raise _refused(error, section) from None
        try:
            DeepSpeedConfig(written)
        except ValidationError as error:
            raise _refused(error) from None
        except Exception as error:  # it raises whatever its parts raise
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            rule = f"DeepSpeed refuses it ({reason})"
            raise ConfigError("deepspeed", str(config.deepspeed), rule, _REFERENCE) from None
    for section, package in _PACKAGES.items():
        if written.get(section, {}).get("enabled") and importlib.util.find_spec(package) is None:
            rule = f"it needs the package {package}, which is not installed"
            raise ConfigError(f"deepspeed.{section}.enabled", True, rule, "Install it on every node, or leave it out")


def _refused(error: ValidationError, *section: str) -> ConfigError:
    problem = error.errors()[0]
    path = ".".join(["deepspeed", *section, *map(str, problem["loc"])])
    return ConfigError(path, problem["input"], f"DeepSpeed refuses it ({problem['msg']})", _REFERENCE)


def _check_owned(raw: dict[str, Any], base: dict[str, Any], prefix: str) -> None:
    for key, value in raw.items():
        path = f"{prefix}{key}"
        if path in OWNED_KEYS and value != "auto":
            raise ConfigError(
                f"deepspeed.{path}", value, f"rcdist sets it from {OWNED_KEYS[path]}", f"Set {OWNED_KEYS[path]} instead"
            )
        if path in _RELIED_ON and value not in (_RELIED_ON[path][0], "auto"):
            needed, reason = _RELIED_ON[path]
            raise ConfigError(f"deepspeed.{path}", value, f"rcdist relies on {needed}: {reason}", "Leave it out")
        if isinstance(value, dict):
            _check_owned(value, _section(base, key), prefix=f"{path}.")


def _merge(base: dict[str, Any], raw: dict[str, Any], prefix: str) -> dict[str, Any]:
    merged = dict(base)
    for key, value in raw.items():
        if value == "auto":
            if key not in base:
                raise ConfigError(f"deepspeed.{prefix}{key}", value, "rcdist has no value for it", "Give a value")
        elif isinstance(value, dict):
            merged[key] = _merge(_section(base, key), value, prefix=f"{prefix}{key}.")
        else:
            merged[key] = value
    return merged


def _section(base: dict[str, Any], key: str) -> dict[str, Any]:
    value = base.get(key)
    return value if isinstance(value, dict) else {}
