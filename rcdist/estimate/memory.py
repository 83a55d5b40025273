"""The most memory that one worker takes, part by part."""

from dataclasses import asdict, dataclass

from rcdist.cluster import Workers
from rcdist.config import JobConfig
from rcdist.config.plan import RESERVOIR_LETTER
from rcdist.model.cost import count_parameters, list_matrices
from rcdist.train.deepspeed_config import has_flat_steps, max_windows, split_batch

CPU_LOGITS = 2**22
"""Logits that exist at a time on a CPU: see ops/cross_entropy_cpu."""
GPU_CONTEXT_BYTES = 1.2e9
"""Of a GPU, what CUDA, NCCL and captured graphs take besides tensors; estimate."""
_COPIES_AT_STAGE = (1, 2, 2, 5)
"""How often DeepSpeed and gloo hold all gradients or weights besides: a bucket as large as the model to reduce; from
stage 1 on what is gathered after the update; at 3 gathered weights, two buckets, gradients and their cut."""
_HEAP_BLOCKS = 5
"""Blocks that a CPU's heap keeps room for with activation checkpointing, though one is needed at a time; measured."""
USABLE = 0.92
"""Share of a device's memory that is planned with, as `train.micro_batch_size=auto` does."""


@dataclass(frozen=True)
class MemoryBytes:
    """Hold bytes of one worker at their most; beyond what imports take.

    Attributes:
        weights: trained ones in the precision of the run.
        gradients: as accumulated.
        optimizer: float32 weights and two moments, or of fp32 without a second copy the moments.
        activations: kept for the backward pass over one micro-batch.
        logits: of the rows at a time, and the gradients of head and last state that are made with the loss.
        buffers: frozen matrices, rounded weights, what collectives are flattened into, a CPU's gradients of values, a
            GPU's context.
    """

    weights: int
    gradients: int
    optimizer: int
    activations: int
    logits: int
    buffers: int

    def describe(self) -> dict[str, int]:
        """Return total_bytes and every part."""
        parts = {f"{name}_bytes": value for name, value in asdict(self).items()}
        return {"total_bytes": sum(parts.values())} | parts


def estimate_memory(config: JobConfig, workers: Workers, windows: int | None = None) -> MemoryBytes:
    """Estimate the most memory of one worker.

    Counted from what the operations keep, and checked against measured peaks of runs (tests/estimate/test_memory).

    Args:
        config: the run.
        workers: of it.
        windows: of one micro-batch; None: of the settings, for auto the fewest, one.
    """
    counts, stage, share = count_parameters(config.architecture), config.train.zero_stage, 1 / workers.num_workers
    size = 2 if config.train.precision == "bf16" else 4
    if windows is None:
        windows = min(split_batch(config, workers.num_workers)[0], max_windows(config))
    tokens = windows * config.data.seq_len
    is_flat = workers.use_gpu and has_flat_steps(config)
    has_copies = size == 2 or stage > 0  # float32 masters, which plain fp32 training has in its weights
    moments = 8 + 4 * has_copies
    trained = counts.trained
    whole = float(size * trained)
    if is_flat:
        weights, gradients, rounded = whole, 4.0 * trained, (1 + size) * trained
        collectives = whole if workers.num_workers > 1 else 0.0
    else:
        weights = whole * (share if stage == 3 else 1.0)
        gradients = whole * (share if stage >= 2 else 1.0)
        rounded = trained
        collectives = whole * _COPIES_AT_STAGE[stage]
    buffers = counts.frozen_unique + rounded + collectives + (GPU_CONTEXT_BYTES if workers.use_gpu else 0.0)
    activations = activation_bytes(config, tokens, num_recomputed=1 if workers.use_gpu else _HEAP_BLOCKS)
    logits = _logit_bytes(config, tokens, is_gpu=workers.use_gpu)
    if not workers.use_gpu:
        # Gradients of one block's values, computed in float32, of which the heap gives nothing back.
        buffers += 4 * tokens * (6 * config.model.glu_width + 10 * config.model.width)
    if size == 2 and stage and not is_flat:
        gradients += 4 * trained * share  # in float32, for the optimizer
    return MemoryBytes(
        weights=round(weights),
        gradients=round(gradients),
        optimizer=round(moments * trained * (share if stage else 1.0)),
        activations=round(activations),
        logits=logits,
        buffers=round(buffers),
    )


def activation_bytes(config: JobConfig, tokens: int, num_recomputed: int = 1) -> float:
    """Count what one micro-batch keeps for its backward pass, of all blocks.

    With activation checkpointing of `num_recomputed` blocks, and the inputs of all: the residual stream and what is
    still to be added to it. Per token and block, in the precision of the run: the residual stream at both norms, what
    each product of the mixer gives, the states, gate and up; in int8 what each product reads; a number per norm.
    """
    size = 2 if config.train.precision == "bf16" else 4
    model, width = config.model, config.model.width
    blocks = [_block_bytes(config, layer, size) for layer in range(model.num_layers)]
    if config.train.activation_checkpointing:
        kept = min(num_recomputed, model.num_layers) * max(blocks)
        return tokens * (2 * size * width * model.num_layers + kept + size * width)
    return tokens * (sum(blocks) + size * width)


def _block_bytes(config: JobConfig, layer: int, size: int) -> float:
    model, reservoir = config.model, config.reservoir
    width, inner = model.width, model.glu_width
    letters = {row.letter for row in list_matrices(config.architecture) if row.layer == layer}
    products = len(letters & set("fcg")) + (reservoir.output_gate == "tied")
    values = 2 * width + (products + 1) * width + 2 * inner
    own = model.norm == "per_projection"
    codes = width * (len(letters & set("fcg")) if own else 1) + width + width * (2 if own else 1) + inner
    if RESERVOIR_LETTER in letters:
        values += 2 * width
        codes += width
    return size * values + codes + 40.0


def _logit_bytes(config: JobConfig, tokens: int, *, is_gpu: bool) -> int:
    size = 2 if config.train.precision == "bf16" else 4
    vocabulary, width = config.model.vocab_size, config.model.width
    rows = max(min((2**27 if is_gpu else CPU_LOGITS) // vocabulary, tokens), 1)
    # int32 sums and logits of some rows; gradients of the last state, and of the head in float32; the head, scaled.
    return round(rows * vocabulary * (4 + size) + tokens * width * size + vocabulary * width * (4 + size))
