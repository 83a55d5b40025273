"""Find how many windows one forward and backward pass has room for: train.micro_batch_size=auto."""

import torch
import torch.distributed as dist

from rcdist.config import JobConfig
from rcdist.data.loader import MicroBatch
from rcdist.model.lm import LanguageModel
from rcdist.ops.weights import WeightsQuantisedOnce

_MOST_TOKENS = {"cpu": 2048, "cuda": 65536}
"""Of a micro-batch: more would not be faster."""
_USABLE = 0.92
"""Share of the free memory: the rest is for what is uneven, and for evaluation."""


def with_micro_batch(config: JobConfig, model: LanguageModel, device: torch.device) -> JobConfig:
    """Return the settings with a number for train.micro_batch_size; a collective call, equal on every rank.

    auto, on a GPU: passes over one and two windows are measured, and as many windows taken as fit beside gradients and
    optimizer; on a CPU, where memory is not what is short: 2048 tokens.

    Args:
        config: the run.
        model: is moved to the device, in the precision of the run.
        device: where it trains.
    """
    if config.train.micro_batch_size != "auto":
        return config
    seq_len = config.data.seq_len
    size = max(_MOST_TOKENS[device.type] // seq_len, 1)
    if device.type == "cuda":
        model.to(device, dtype=torch.bfloat16 if config.train.precision == "bf16" else torch.float32)
        size = min(size, _fitting(config, model, device))
        agreed = torch.tensor(size, device=device)
        dist.all_reduce(agreed, op=dist.ReduceOp.MIN)
        size = int(agreed)
    train = config.train.model_copy(update={"micro_batch_size": size})
    return config.model_copy(update={"train": train})


def _fitting(config: JobConfig, model: LanguageModel, device: torch.device) -> int:
    num_trained = sum(p.numel() for p in model.parameters())
    shares = dist.get_world_size() if config.train.zero_stage else 1
    # Float32 sums of gradients and a copy that travels; float32 weights and two moments, of a share of them.
    held = 6 * num_trained + 12 * num_trained // shares
    one, two = (_peak_bytes(config, model, device, windows) for windows in (1, 2))
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info(device)
    each = max(two - one, 1)
    return max(int((free * _USABLE - held - (one - each)) // each), 1)


def _peak_bytes(config: JobConfig, model: LanguageModel, device: torch.device, windows: int) -> int:
    """Return what a pass needs beyond the weights."""
    shape = (windows, config.data.seq_len)
    zeros = torch.zeros(shape, dtype=torch.int64, device=device)
    batch = MicroBatch(zeros, zeros, zeros.bool(), torch.ones(shape, device=device))
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    with WeightsQuantisedOnce():
        torch.autograd.grad(model(*batch.tensors()), list(model.parameters()), allow_unused=True)
    return torch.cuda.max_memory_allocated(device) - before
