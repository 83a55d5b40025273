"""One process of a bare torch.distributed and DeepSpeed loop: the minimum that can train our model, as a baseline."""

import json
import logging
import os
import sys
import time
import warnings

import torch
import torch.distributed as dist

from rcdist.benchmark.steps import random_tokens
from rcdist.config import JobConfig
from rcdist.model.lm import LanguageModel
from rcdist.model.reservoir import build_bank
from rcdist.ops.host import prepare_host
from rcdist.ops.weights import WeightsQuantisedOnce
from rcdist.train.deepspeed_config import build_deepspeed_config, split_batch
from rcdist.train.optim import build_parameter_groups


def run(config: JobConfig, first: int, device: torch.device) -> float:
    """Train on random tokens that are in memory already; return the seconds per step after the first few.

    Args:
        config: model, optimizer, batch, ZeRO stage and number of steps of the run it is compared with.
        first: steps that are not timed.
        device: of this process.
    """
    if device.type == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"
        prepare_host(1)
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    warnings.simplefilter("ignore")
    import deepspeed
    import deepspeed.ops

    if device.type == "cpu":
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # as the run that it is compared with
    backend = "gloo" if device.type == "cpu" else "nccl"
    deepspeed.init_distributed(dist_backend=backend)
    size = dist.get_world_size()
    bank = build_bank(config.architecture)
    model = LanguageModel(config.architecture, bank, seed=0, separately=config.train.zero_stage == 3)
    groups = build_parameter_groups(model, config.optimizer.weight_decay)
    optimizer = torch.optim.AdamW(groups, lr=config.optimizer.learning_rate, fused=True)
    trained = sum(p.numel() for group in groups for p in group["params"])
    settings = build_deepspeed_config(config, size, trained)
    engine, *_ = deepspeed.initialize(
        model=model.to(device), optimizer=optimizer, config=settings, dist_init_required=False
    )
    windows, accumulation = split_batch(config, size)
    tokens = random_tokens(config.model, windows, config.data.seq_len, device)
    inputs, targets = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
    starts, weights = torch.zeros_like(inputs, dtype=torch.bool), torch.ones(inputs.shape, device=device)
    began = 0.0
    for step in range(config.train.steps):
        if step == first:
            began = time.perf_counter()
        with WeightsQuantisedOnce():
            for _ in range(accumulation):
                loss = engine(inputs, starts, targets, weights)
                engine.backward(loss * size * accumulation / config.train.global_batch_tokens)
                engine.step()
        float(loss.detach())
    return (time.perf_counter() - began) / (config.train.steps - first)


if __name__ == "__main__":
    request = json.loads(sys.argv[1])
    on = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if request["device"] == "cuda" else torch.device("cpu")
    taken = run(JobConfig(**request["config"]), request["first"], on)
    if os.environ["RANK"] == "0":
        print(f"\nseconds {taken}", flush=True)
    dist.barrier()
    os._exit(0)  # threads of the process group may still run, and would end the process with an error
