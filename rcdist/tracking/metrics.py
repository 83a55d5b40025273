"""The one list of metric names with their units; MLflow, the JSON lines log and dashboards use these names only."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Metric:
    """Name one metric.

    Attributes:
        name: group/quantity, the quantity ending in its unit.
        unit: unit of the value; "1" for a ratio, a count or a flag.
        description: what the value is, over which steps and workers.
        has_parts: besides the mean, `name/part` is recorded for each part: a module by its name in the model.
    """

    name: str
    unit: str
    description: str
    has_parts: bool = False


METRICS: tuple[Metric, ...] = (
    Metric("train/loss_nats", "nats/token", "Training loss of this step, mean over the tokens of the global batch"),
    Metric("train/loss_mean_nats", "nats/token", "Mean training loss of the steps since the last record"),
    Metric("train/grad_norm", "1", "Global gradient norm before clipping"),
    Metric("train/learning_rate", "1", "Learning rate of this step"),
    Metric("train/tokens", "tokens", "Tokens trained on since step 0, over all workers"),
    Metric("train/epoch", "1", "Passes over the training corpus, fractional"),
    Metric("train/skipped_steps", "1", "Steps since step 0 whose update was skipped: not finite, or a spike"),
    Metric("train/rollbacks", "1", "How often weights and optimizer were taken back to a checkpoint"),
    Metric("eval/loss_nats", "nats/token", "Held-out loss"),
    Metric("eval/perplexity", "1", "exp of the held-out loss"),
    Metric("eval/bits_per_byte", "bits/byte", "Held-out nats over ln 2 and the bytes of the text"),
    Metric("perf/tokens_per_s", "tokens/s", "Tokens per second over all workers, steps only"),
    Metric("perf/mfu", "1", "Trained FLOP/s over the peak FLOP/s of all devices"),
    Metric("perf/step_s", "s", "Mean seconds per step since the last record"),
    Metric("perf/data_wait_s", "s", "Mean seconds per step that rank 0 waited for data"),
    Metric("memory/peak_bytes", "bytes", "Peak memory of rank 0: reserved on its device, or resident on CPU"),
    Metric("wire/bytes_per_step", "bytes", "Mean payload bytes per step that rank 0 hands to collectives"),
    Metric("wire/frozen_bytes_per_step", "bytes", "In the last step looked into, bytes of frozen values; must be 0"),
    Metric("wire/start_bytes", "bytes", "Bytes of the frozen tensors in Ray's store, times the nodes that hold them"),
    Metric("cost/device_s", "s", "Device seconds paid for since step 0, all workers"),
    Metric("cost/usd", "USD", "Device seconds x price since step 0"),
    Metric("cost/kwh", "kWh", "Device seconds x stated power since step 0"),
    Metric("cost/goodput", "1", "Device seconds spent on steps that count over device seconds paid for"),
    Metric("cost/startup_device_s", "s", "Of these, from a worker's start to its first step"),
    Metric("cost/checkpoint_device_s", "s", "Of these, spent waiting for checkpoints"),
    Metric("cost/lost_device_s", "s", "Of these, inside steps that were lost with a worker, skipped or taken back"),
    Metric("cost/idle_device_s", "s", "Of these, held without work: waiting for data, or for workers to be replaced"),
    Metric("cost/trained_flops", "FLOP", "Matrix-product FLOPs of training: 6 per trained weight, 4 per frozen"),
    Metric("cost/hardware_flops", "FLOP", "The same, plus what activation checkpointing computes again"),
    Metric("cost/budget_usd", "USD", "cost.budget_usd of the run or search, if it has one"),
    Metric("cost/budget_device_s", "s", "cost.budget_device_s of the run or search, if it has one"),
    Metric("run/worker_starts", "1", "How often workers were started since step 0, the first time included"),
    Metric("run/preemptions", "1", "Notices since step 0 that a node is about to be taken away"),
    Metric("run/step", "steps", "Optimizer steps done, of a search the trials that have ended; for dashboards only"),
    Metric("run/steps", "steps", "Optimizer steps of the run, of a search its trials; for dashboards only"),
    Metric("run/record_time_s", "s", "Unix time of the newest record; for dashboards only"),
    Metric("run/active", "1", "1 while a driver follows the run or search, then 0; for dashboards only"),
    Metric("reservoir/digest_ok", "1", "1 when the digest that each rank has just taken of frozen tensors is right"),
    Metric("reservoir/effective_rank", "1", "Effective rank of 256 states of a block, at most 256", True),
    Metric("gate/saturation", "1", "Share of forget gate values within 0.01 of 0 or 1", True),
    Metric("ternary/zero_fraction", "1", "Share of trained ternary weights that are 0", True),
    Metric("ternary/flip_rate", "1", "Share of trained ternary weights that changed since the last reading", True),
    Metric(
        "sweep/objective", "as named", "An objective as the search saw it: its cost is never the trial's clock's", True
    ),
    Metric(
        "sweep/aucc", "bits/byte", "Mean of the validation curve up to the cost of the cheapest trial of the search"
    ),
    Metric("sweep/hypervolume", "1", "Share below 1.1 times the baseline that the front dominates, after each trial"),
    Metric("sweep/trials", "1", "Trials that have ended"),
    Metric("sweep/failed_trials", "1", "Of these, failed or infeasible ones"),
    Metric("yardstick/gzip_bits_per_byte", "bits/byte", "gzip -9 over the held-out text"),
    Metric("yardstick/unigram_bits_per_byte", "bits/byte", "Add-one unigram model over the held-out tokens"),
    Metric("yardstick/bigram_bits_per_byte", "bits/byte", "Add-one bigram model over the held-out tokens"),
)
"""Every metric, in the order of tables and dashboards; append within a group, never rename."""

METRIC_BY_NAME: Mapping[str, Metric] = {metric.name: metric for metric in METRICS}


def is_listed(name: str) -> bool:
    """Say whether a name is in METRICS, or a part of one that has parts."""
    if name in METRIC_BY_NAME:
        return True
    group, _, rest = name.partition("/")
    metric = METRIC_BY_NAME.get(f"{group}/{rest.partition('/')[0]}")
    return metric is not None and metric.has_parts


def check_record(record: Mapping[str, float]) -> None:
    """Assert that every name of a record is in METRICS."""
    unknown = sorted(name for name in record if not is_listed(name))
    assert not unknown, f"not in rcdist.tracking.metrics.METRICS: {unknown}"
