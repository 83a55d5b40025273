"""Write the DeepSpeed configuration of a run and merge the user's raw keys over it; imports nothing of DeepSpeed."""

from typing import Any

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
    "zero_optimization.stage": "train.zero_stage",
}
"""Raw keys that duplicate a setting of ours, and that setting."""

_LARGEST_BUCKET_ELEMENTS = 500_000_000


def split_batch(config: JobConfig, num_workers: int) -> tuple[int, int]:
    """Split the global batch over workers and micro-batches.

    Returns:
        (windows per micro-batch of one worker, micro-batches per step). Their product times `num_workers` may exceed
        the windows of the batch: the loader pads with windows of weight zero.
    """
    per_worker = -(-config.windows_per_step // num_workers)
    num_micro_batches = -(-per_worker // config.train.micro_batch_size)
    return -(-per_worker // num_micro_batches), num_micro_batches


def is_unwrapped(config: JobConfig) -> bool:
    """Say whether DeepSpeed runs the bare optimizer, without a wrapper that checks and clips gradients."""
    return config.train.zero_stage == 0 and config.train.precision == "fp32"


def build_deepspeed_config(config: JobConfig, num_workers: int, num_trained: int) -> dict[str, Any]:
    """Write the DeepSpeed configuration.

    Args:
        config: the run.
        num_workers: data-parallel world size.
        num_trained: trained parameters; buckets larger than the model would only waste memory.

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
    _check_owned(config.deepspeed, base, prefix="")
    return _merge(base, config.deepspeed, prefix="")


def _check_owned(raw: dict[str, Any], base: dict[str, Any], prefix: str) -> None:
    for key, value in raw.items():
        path = prefix + key
        if path in OWNED_KEYS and value != "auto":
            raise ConfigError(
                f"deepspeed.{path}", value, f"rcdist sets it from {OWNED_KEYS[path]}", f"Set {OWNED_KEYS[path]} instead"
            )
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
