"""What one worker exchanges in one step: bytes handed to collectives, and bytes that pass its link."""

from dataclasses import dataclass

from rcdist.cluster import Workers
from rcdist.config import JobConfig
from rcdist.model.cost import count_parameters, count_vectors, list_matrices
from rcdist.train.deepspeed_config import has_flat_steps, split_batch

_ALIGNMENT = 2
"""Elements that DeepSpeed rounds a partition up to."""
_SUMS = 6
"""Numbers of float64 that every step adds up: the loss, energy, three reasons to stop, and failed writing."""


@dataclass(frozen=True)
class Exchange:
    """Hold bytes of one worker and step.

    Attributes:
        reduced: of gradients, handed over whole and summed over the workers.
        gathered: of weights, the part that this worker has and hands to all.
        sums: of what is summed besides.
        is_shared_out: of the sum each worker gets a part, not all.
    """

    reduced: int
    gathered: int
    sums: int
    is_shared_out: bool

    @property
    def handed_bytes(self) -> int:
        """Return the payload, as `rcdist.train.wire` counts it."""
        return self.reduced + self.gathered + self.sums

    def link_bytes(self, num_workers: int) -> float:
        """Return what a worker sends over its link in a ring: a sum that all get goes around twice."""
        others = num_workers - 1
        rounds = 1 if self.is_shared_out else 2
        return rounds * others / num_workers * self.reduced + others * self.gathered


def estimate_exchange(config: JobConfig, workers: Workers) -> Exchange:
    """Count what one step exchanges: the payload exactly at ZeRO stages 0 to 2; at 3 but for the order of prefetching.

    Gradients go whole, at stages 2 and 3 once per micro-batch, in the precision of the run; what a worker has updated
    of the weights it hands to all once, at stage 3 when they are used. Frozen matrices are in none of it.
    """
    count, stage = workers.num_workers, config.train.zero_stage
    size = 2 if config.train.precision == "bf16" else 4
    trained, vectors = count_parameters(config.architecture).trained, count_vectors(config.architecture)
    is_flat = workers.use_gpu and has_flat_steps(config)
    sums = 8 * (_SUMS + is_flat)
    if is_flat and count == 1:
        return Exchange(0, 0, sums, True)
    if stage == 0:
        return Exchange(size * trained, 0, sums, False)
    passes = split_batch(config, count)[1]
    if stage == 3:
        return Exchange(size * passes * trained, size * _gathered_weights(config, count, passes), sums + 16, True)
    groups = (trained - vectors, vectors) if count > 1 else ()
    parts = [-(-group // (_ALIGNMENT * count)) * _ALIGNMENT for group in groups]
    # DeepSpeed's own norm of the gradient, and in bf16 whether it is finite.
    checks = 0 if is_flat else 8 + (size == 2)
    exchanges = passes if stage == 2 and not is_flat else 1
    return Exchange(size * exchanges * trained, size * sum(parts), sums + checks, True)


def _gathered_weights(config: JobConfig, num_workers: int, passes: int) -> int:
    """Count the weights that a worker hands to all in a step of stage 3.

    DeepSpeed gathers small ones once, after the update, and the others in each forward pass; in the backward pass
    again if more than `stage3_max_reuse_distance` weights are used in between, which are those before and after it.
    """
    if num_workers == 1:
        return 0
    architecture, settings = config.architecture, config.deepspeed.get("zero_optimization", {})
    small = int(settings.get("stage3_param_persistence_threshold", 100_000))
    near = int(settings.get("stage3_max_reuse_distance", 1_000_000_000)) // 2
    matrices = {row.key: row.num_weights for row in list_matrices(architecture) if not row.is_frozen}
    sizes = [architecture.model.vocab_size * architecture.model.width, *matrices.values()]  # in the order of use
    kept = count_vectors(architecture) + sum(size for size in sizes if size <= small)
    large = [size for size in sizes if size > small]
    again, after = 0, sum(sizes)
    for size in sizes:
        after -= size
        again += size if size > small and after >= near else 0
    gathered = kept + passes * (sum(large) + again)
    return -(-gathered // num_workers)
