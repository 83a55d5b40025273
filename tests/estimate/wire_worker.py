"""Two real processes that train under every ZeRO stage and report what they hand to collectives."""

import torch

from rcdist.config import JobConfig
from rcdist.data.loader import MicroBatch
from rcdist.model.lm import LanguageModel
from rcdist.model.reservoir import build_bank
from rcdist.train.wire import WireMeter

WORLD_SIZE = 2
CASES = [
    (plan, stage, precision, size, "")
    for plan in ("T", "T cG@a")
    for stage in (0, 1, 2, 3)
    for precision in ("fp32", "bf16")
    for size in (8, 4)
]
"""Plan, ZeRO stage, precision, windows of a micro-batch out of eight a worker, and a name in RAW."""
RAW = {
    "": {},
    "matrices let go": {"stage3_param_persistence_threshold": 1000},
    "gathered twice": {
        "stage3_param_persistence_threshold": 1000,
        "stage3_max_reuse_distance": 150_000,
        "stage3_prefetch_bucket_size": 0,
    },
}
"""Settings of stage 3, under which a small model is treated as a large one is: 10^5 weights are little, 10^9 many."""
CASES += [("T", 3, "bf16", size, name) for size in (8, 4) for name in RAW if name]


def job(plan: str, stage: int, precision: str, size: int, raw: str = "") -> JobConfig:
    return JobConfig(
        deepspeed={"zero_optimization": RAW[raw]} if raw else {},
        model={"num_layers": 2, "width": 64, "glu_width": 128, "vocab_size": 512},
        data={"seq_len": 64},
        reservoir={"plan": plan},
        train={
            "global_batch_tokens": 64 * 8 * WORLD_SIZE,
            "micro_batch_size": size,
            "zero_stage": stage,
            "precision": precision,
        },
    )


def measure() -> dict[tuple[str, int, str, int, str], int]:
    """Train four steps of each case and return the bytes of the last one."""
    measured = {}
    for case in CASES:
        config = job(*case)
        bank = build_bank(config.architecture)
        wire = WireMeter(bank.buffers())
        model = LanguageModel(config.architecture, bank, seed=0, separately=config.train.zero_stage == 3)
        with wire.installed():
            from rcdist.train.engine import Engine

            engine = Engine(model, config, world_size=WORLD_SIZE, device=torch.device("cpu"))
            tokens = torch.randint(0, 500, (case[3], 64))
            batch = MicroBatch(tokens, tokens, torch.zeros_like(tokens).bool(), torch.ones(tokens.shape))
            for _ in range(4):
                wire.take()
                engine.train_step(
                    [batch] * (8 // case[3]),
                    config.train.global_batch_tokens,
                    learning_rate=1e-3,
                    weight_decay=0.1,
                    also_sum=(0.0,) * 5,
                )
            sent = wire.take()
            engine.close()
        measured[case] = sent.trained + sent.frozen
    return measured
