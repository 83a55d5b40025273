"""What a search minimises: a quality that trials record, and a cost that is known of a trial without its clock."""

from collections.abc import Mapping, Sequence
from typing import Any

from rcdist.config import JobConfig
from rcdist.errors import ConfigError
from rcdist.model.cost import count_parameters, estimate_flops
from rcdist.report.runs import LABELS
from rcdist.tracking.prices import PriceRow

QUALITIES = ("eval/bits_per_byte", "eval/loss_nats", "eval/perplexity")
"""What every trial records at its end, over all held-out text."""

COSTS = tuple(name for name in LABELS if name not in QUALITIES)
"""What a trial costs; time/... are measured, and need sweep.cost_from=benchmark."""


def check_objectives(names: Sequence[str]) -> None:
    """Refuse what no trial records, and anything but a quality and at most one cost.

    Raises:
        ConfigError: names what can be used.
    """
    for name in names:
        if name not in QUALITIES and name not in COSTS:
            known = ", ".join((*QUALITIES, *COSTS))
            raise ConfigError("sweep.objectives", name, f"no trial records it; known: {known}", "Use one of these")
    if not 1 <= len(names) <= 2 or names[0] not in QUALITIES or any(name in QUALITIES for name in names[1:]):
        rule = "is not a quality, alone or followed by one cost"
        raise ConfigError("sweep.objectives", ", ".join(names), rule, "Write e.g. [eval/bits_per_byte, cost/usd]")


def check_cost(name: str, cost_from: str) -> None:
    """Refuse measured time where nothing measures it.

    Raises:
        ConfigError: says what to set.
    """
    if name.startswith("time/") and cost_from == "flops":
        rule = "is measured, and sweep.cost_from=flops measures nothing"
        raise ConfigError("sweep.objectives", name, rule, "Set sweep.cost_from=benchmark, or use cost/usd")


def trial_costs(config: JobConfig, price: PriceRow, measured: Mapping[str, float] | None = None) -> dict[str, float]:
    """Return every cost of a trial by name; none is from the trial's own clock, which other trials disturb.

    Args:
        config: the trial.
        price: of a device; its peak FLOP/s turn FLOPs into device seconds where nothing is measured.
        measured: `time/...` of an exclusive benchmark.
    """
    counts = count_parameters(config.architecture)
    flops = estimate_flops(config.architecture, activation_checkpointing=config.train.activation_checkpointing)
    per_token_s = measured["time/train_s"] if measured else flops.hardware / price.peak_flops
    device_s = per_token_s * config.train.steps * config.train.global_batch_tokens
    return {
        "cost/usd": device_s * price.usd_per_device_s,
        "cost/device_s": device_s,
        "model/stored_parameters": float(counts.stored),
        "model/train_flops": float(flops.train),
        "model/prefill_flops": float(flops.prefill),
        "model/decode_flops": float(flops.decode),
        **(measured or {}),
    }


def measure_plan(config: JobConfig, pairs: int | None = None) -> dict[str, dict[str, float]]:
    """Benchmark a plan for some seconds against plan T, alternately; nothing else may run meanwhile.

    Args:
        config: the trial.
        pairs: measured pairs; None: 5, and 25 on a GPU, whose steps are short.

    Returns:
        By train, prefill and decode: `ratio` of the plan's time to that of T, and `T_s`, seconds per token of T.
    """
    import torch

    from rcdist.benchmark.steps import measure_deltas
    from rcdist.ops.host import prepare_host
    from rcdist.train.deepspeed_config import max_windows

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    prepare_host(max(int(config.cluster.cpus_per_worker), 1))
    batch, length = max_windows(config, if_auto=8), config.data.seq_len
    count = pairs or (25 if device.type == "cuda" else 5)
    found: dict[str, Any] = measure_deltas(config.model, config.reservoir, batch, length, count, device)
    tokens = {"train": batch * length, "prefill": batch * length, "decode": batch * found["decode_steps"]}
    return {
        kind: {"ratio": found[kind]["ratio"]["median"], "T_s": found[kind]["median_s"]["T"] / number}
        for kind, number in tokens.items()
    }


def measure_alone(config: JobConfig, use_gpu: bool) -> dict[str, dict[str, float]]:
    """Benchmark a plan in a process of its own; whoever calls it has seen to it that no trial runs.

    Processes of trials that have ended keep their reservation for the next one, and so the benchmark reserves nothing.
    """
    import ray

    threads = str(max(int(config.cluster.cpus_per_worker), 1))
    environment = {"OMP_NUM_THREADS": threads}
    options: dict[str, Any] = {"num_cpus": 0, "max_calls": 1, "runtime_env": {"env_vars": environment}}
    if use_gpu:
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        environment["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"
        nodes = [node["NodeID"] for node in ray.nodes() if node["Alive"] and node["Resources"].get("GPU")]
        if nodes:  # else none is up yet, and what is measured is a processor
            options["scheduling_strategy"] = NodeAffinitySchedulingStrategy(nodes[0], soft=False)
    task = ray.remote(**options)(measure_plan)
    found: dict[str, dict[str, float]] = ray.get(task.remote(config))
    return found


def to_times(
    measured: Mapping[str, Mapping[str, float]], reference: Mapping[str, Mapping[str, float]]
) -> dict[str, float]:
    """Return `time/...` in seconds per token: a plan's ratio to T times what T took once, free of the machine's drift.

    Args:
        measured: of the plan, from measure_plan.
        reference: of the search's first plan.
    """
    return {f"time/{kind}_s": found["ratio"] * reference[kind]["T_s"] for kind, found in measured.items()}
