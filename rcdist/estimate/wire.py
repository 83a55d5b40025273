"""Bytes that one worker hands to collectives in one step, as `rcdist.train.wire` counts them."""

from rcdist.cluster import Workers
from rcdist.config import JobConfig
from rcdist.model.cost import count_parameters, count_vectors
from rcdist.train.deepspeed_config import has_flat_steps, split_batch

_ALIGNMENT = 2
"""Elements that DeepSpeed rounds a partition up to."""
_SUMS = 6
"""Numbers of float64 that every step adds up: the loss, energy, three reasons to stop, and failed writing."""


def estimate_wire(config: JobConfig, workers: Workers) -> int:
    """Count the payload bytes of one step, exactly at ZeRO stages 0 to 2; at 3 but for padding.

    Gradients go whole, at stages 2 and 3 once per micro-batch, in the precision of the run; what a worker has updated
    of the weights it hands to all once: at stage 3 DeepSpeed keeps up to 10^9 gathered ones from the first use to the
    update. Frozen matrices are in none of it.
    """
    count, stage = workers.num_workers, config.train.zero_stage
    size = 2 if config.train.precision == "bf16" else 4
    trained, vectors = count_parameters(config.architecture).trained, count_vectors(config.architecture)
    is_flat = workers.use_gpu and has_flat_steps(config)
    sums = 8 * (_SUMS + is_flat)
    if is_flat and count == 1:
        return sums
    if stage == 0:
        return size * trained + sums
    groups = (trained - vectors, vectors) if count > 1 else ()
    parts = [-(-group // (_ALIGNMENT * count)) * _ALIGNMENT for group in groups]
    passes = split_batch(config, count)[1]
    if stage < 3:
        # DeepSpeed's own norm of the gradient, and in bf16 whether it is finite.
        checks = 0 if is_flat else 8 + (size == 2)
        exchanges = passes if stage == 2 and not is_flat else 1
        return size * (exchanges * trained + sum(parts)) + sums + checks
    return size * (passes * trained + trained // count) + sums + 16
