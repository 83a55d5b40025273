"""JobConfig: every setting of a run, typed, with unit, range and default."""

import hashlib
import os
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from rcdist.bucket import Bucket, is_bucket, open_bucket
from rcdist.config.architecture import Architecture
from rcdist.config.data import DataConfig, TokenizerConfig
from rcdist.config.model import ModelConfig
from rcdist.config.reservoir import ReservoirConfig
from rcdist.config.section import LocalPath, RawTree, Section
from rcdist.errors import ConfigError


class OptimizerConfig(Section):
    """AdamW, with decay on matrices only."""

    learning_rate: Annotated[float, Field(gt=0, le=1)] = 4e-3
    """Peak learning rate."""
    beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """First-moment decay."""
    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.95
    """Second-moment decay."""
    eps: Annotated[float, Field(gt=0)] = 1e-8
    """Added to the root of the second moment."""
    weight_decay: Annotated[float, Field(ge=0, le=1)] = 0.1
    """Decoupled decay of matrices; vectors (norms, gains, lower bounds) have none."""
    clip_norm: Annotated[float, Field(gt=0)] | None = 1.0
    """Largest global gradient norm; None: no clipping."""


class ScheduleConfig(Section):
    """Learning rate and weight decay as pure functions of the step."""

    kind: Literal["cosine", "wsd", "two_stage"] = "cosine"
    """cosine; wsd: warm-up, stable, linear decay; two_stage: cosine, then half of it and no weight decay."""
    warmup_fraction: Annotated[float, Field(ge=0, le=1)] = 0.02
    """Share of train.steps spent on linear warm-up."""
    final_ratio: Annotated[float, Field(ge=0, le=1)] = 0.1
    """Learning rate of the last step over the peak."""
    decay_fraction: Annotated[float, Field(ge=0, le=1)] = 0.2
    """Share of train.steps that wsd spends on its decay."""
    stage_two_start: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Share of train.steps after which two_stage halves the learning rate and drops the weight decay."""


class TrainConfig(Section):
    """Length, batch and arithmetic of the run."""

    steps: Annotated[int, Field(ge=1)] = 600
    """Optimizer steps."""
    global_batch_tokens: Annotated[int, Field(ge=8)] = 4096
    """Tokens per optimizer step over all workers; a multiple of data.seq_len."""
    micro_batch_size: Annotated[int, Field(ge=1)] | Literal["auto"] = 8
    """Most windows in one forward pass of one worker, the gradient accumulation follows from it; auto: what fits."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Arithmetic of weights and activations; bf16 keeps float32 masters in the optimizer."""
    zero_stage: Annotated[int, Field(ge=0, le=3)] = 2
    """DeepSpeed ZeRO: 0 none, 1 optimizer states, 2 and gradients, 3 and parameters are partitioned."""
    activation_checkpointing: bool = False
    """Recompute each block in the backward pass: less memory, about a third more compute."""
    cuda_graphs: bool = True
    """On a GPU, at stages 0 to 2: launch each micro-batch at once and exchange gradients once per step, which takes 4
    bytes of memory per trained weight; false: DeepSpeed's hooks handle every gradient."""
    on_nonfinite: Literal["skip", "stop"] = "skip"
    """A step whose loss or gradient norm is NaN or Inf: skip the update, or stop with exit code 5."""
    backend: Literal["auto", "reference", "cpu", "triton"] = "auto"
    """Who computes: reference: plain PyTorch; cpu: C++ compiled at first use; triton; auto: the device's fastest."""
    max_wall_s: Annotated[float, Field(gt=0)] | None = None
    """Wall seconds of one job, from its start: then it saves and ends with exit code 4; None: no limit."""
    log_every_steps: Annotated[int, Field(ge=1)] = 10
    """Steps between two records of the metrics."""


class DivergenceConfig(Section):
    """What is done about loss spikes; updates are also skipped where loss or gradient is not finite."""

    spike_z: Annotated[float, Field(gt=0)] | None = 8.0
    """Robust z-score of the loss above which an update is skipped; None: never."""
    window_steps: Annotated[int, Field(ge=16, le=10_000)] = 64
    """Newest steps whose losses are compared with, and within which skipped steps are counted."""
    max_skipped: Annotated[int, Field(ge=0)] = 4
    """Skipped steps allowed within window_steps; one more rolls back to the newest checkpoint, past the data."""
    max_rollbacks: Annotated[int, Field(ge=0)] = 2
    """Rollbacks before a run stops with exit code 5."""


class CheckpointConfig(Section):
    """What is kept to continue from."""

    every_steps: Annotated[int, Field(ge=1)] | None = 100
    """Steps between two checkpoints; None: only at the end."""
    keep_latest: Annotated[int, Field(ge=1)] = 2
    """Newest checkpoints kept; the best by eval/loss_nats is kept besides."""
    keep_every_steps: Annotated[int, Field(ge=1)] | None = None
    """Checkpoints of multiples of this many steps are kept for good; None: none is."""
    resume_from: LocalPath | None = None
    """A checkpoint, or a run's folder, whose weights, optimizer and place in the data a new run starts from."""
    resume: bool = True
    """Continue the run of the same name from its newest valid checkpoint; false: refuse a name that has one."""


class EvaluateConfig(Section):
    """Held-out loss during and after training."""

    every_steps: Annotated[int, Field(ge=1)] | None = 100
    """Steps between two evaluations; None: only at the end."""
    max_tokens: Annotated[int, Field(ge=8)] | None = 32_768
    """Tokens evaluated at intervals; None: all. The evaluation at the end uses all."""
    yardsticks: bool = True
    """Print gzip -9 and add-one unigram and bigram models over the same held-out text at the end."""


class TrackingConfig(Section):
    """Where metrics go."""

    uri: str | None = None
    """MLflow tracking URI, sqlite:///... or http(s)://...; None: sqlite in <storage_path>/mlflow.db."""
    experiment: Annotated[str, Field(min_length=1)] = "rcdist"
    """MLflow experiment."""
    timeout_s: Annotated[float, Field(gt=0, le=600)] = 10.0
    """Seconds a tracking server may take to answer: after that a start is refused, and metrics are kept for later."""
    health_every_steps: Annotated[int, Field(ge=1)] | None = 100
    """Steps between two readings of ternary weights, gates, states and frozen bytes; None: never."""
    log_samples: bool = False
    """Log which windows every worker reads in every step, to prove that none is lost or read twice."""


class CostConfig(Section):
    """What a device second costs."""

    node_type: str = "auto"
    """Row of the price table; auto: laptop-cpu without a GPU, else the row of the GPU's name."""
    price_table: LocalPath | None = None
    """YAML price table; None: the one in the package."""
    market: Literal["on_demand", "spot"] = "on_demand"
    """Which price of the row applies."""
    budget_usd: Annotated[float, Field(gt=0)] | None = None
    """Money a run may cost over all its jobs: then it saves and ends with exit code 4; None: no limit."""
    budget_device_s: Annotated[float, Field(gt=0)] | None = None
    """Device seconds a run may take over all its jobs: then it saves and ends with exit code 4; None: no limit."""
    peak_flops: Annotated[float, Field(gt=0)] | None = None
    """Peak FLOP/s of one device, for perf/mfu; None: the price table's."""


NumWorkers = Annotated[int, Field(ge=1, le=65536)]


class ClusterConfig(Section):
    """Which workers train."""

    address: str | None = None
    """HOST:PORT of a cluster, auto: the Ray on this machine, local: one of its own; None: RAY_ADDRESS, or local."""
    num_workers: NumWorkers | tuple[NumWorkers, NumWorkers] | None = None
    """Workers; [min, max]: as many as there is room for, now and later; None: one per GPU, else 2 on CPU."""
    use_gpu: bool | None = None
    """Give each worker a GPU; None: if the cluster has any."""
    cpus_per_worker: Annotated[float, Field(gt=0)] = 1.0
    """CPUs reserved, and threads used on CPU, per worker."""
    max_failures: Annotated[int, Field(ge=-1)] = 3
    """Failures of workers or nodes after which a job goes on by itself, then exit code 6; -1: no limit. Pre-emption
    with notice does not count."""
    start_timeout_s: Annotated[float, Field(gt=0)] | None = None
    """Seconds that Ray may take to start the workers; None: 600, because autoscaled nodes need minutes, and 30 where
    fewer workers will do."""
    hang_timeout_s: Annotated[float, Field(gt=0)] = 900.0
    """Seconds after which a collective that some worker does not join counts as a failure of the workers."""
    resize_interval_s: Annotated[float, Field(gt=0)] = 60.0
    """Seconds between two checks for room for more workers, where num_workers is [min, max]."""
    stop_grace_s: Annotated[float, Field(ge=0)] = 20.0
    """Seconds that SIGTERM or Ctrl-C leave for one last checkpoint; 0: none is saved."""

    @field_validator("num_workers")
    @classmethod
    def _least_first(cls, value: object) -> object:
        if isinstance(value, tuple) and value[0] > value[1]:
            raise ValueError(f"the least, {value[0]}, is more than the most, {value[1]}")
        return value


class JobConfig(Section):
    """Every setting of one pre-training run."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")] = "tiny"
    """Name of the run; the same name continues the same run."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Seed of the initial trained weights."""
    storage_path: LocalPath = "~/rcdist"
    """Folder (local or shared by all nodes) that holds runs, datasets and, by default, mlflow.db; or a bucket's
    s3://... or gs://..., of which every node has a working copy in RCDIST_WORK_DIR (~/.cache/rcdist)."""
    model: ModelConfig = ModelConfig()
    reservoir: ReservoirConfig = ReservoirConfig()
    tokenizer: TokenizerConfig = TokenizerConfig()
    data: DataConfig = DataConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    train: TrainConfig = TrainConfig()
    deepspeed: RawTree = {}
    """Raw DeepSpeed configuration, merged over what rcdist writes; keys that rcdist owns are refused."""
    divergence: DivergenceConfig = DivergenceConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    tracking: TrackingConfig = TrackingConfig()
    cost: CostConfig = CostConfig()
    cluster: ClusterConfig = ClusterConfig()

    @model_validator(mode="after")
    def _batch_is_whole_windows(self) -> "JobConfig":
        batch, seq_len = self.train.global_batch_tokens, self.data.seq_len
        if batch % seq_len:
            raise ConfigError(
                "train.global_batch_tokens",
                batch,
                f"not a multiple of data.seq_len={seq_len}",
                f"Use {max(batch // seq_len, 1) * seq_len} or {(batch // seq_len + 1) * seq_len}",
            )
        return self

    @property
    def architecture(self) -> Architecture:
        """Return what the model is."""
        return Architecture(self.model, self.reservoir)

    @property
    def storage(self) -> Path:
        """Return the folder of `storage_path`; of a bucket this node's working copy."""
        if self.bucket is None:
            return Path(self.storage_path).expanduser()
        work = os.environ.get("RCDIST_WORK_DIR") or "~/.cache/rcdist"
        return Path(work).expanduser().absolute() / hashlib.sha256(self.bucket.url.encode()).hexdigest()[:16]

    @property
    def bucket(self) -> Bucket | None:
        """Return the bucket of `storage_path`, None where it is a folder."""
        return open_bucket(self.storage_path) if is_bucket(self.storage_path) else None

    @property
    def run_prefix(self) -> str:
        """Return the prefix of this run in the bucket."""
        return f"runs/{self.name}"

    @property
    def run_dir(self) -> Path:
        """Return the folder of this run: checkpoints, metrics.jsonl, config.yaml."""
        return self.storage / "runs" / self.name

    @property
    def dataset_dir(self) -> Path:
        """Return the folder under which tokenised corpora are cached by content digest."""
        return Path(self.data.cache_dir).expanduser() if self.data.cache_dir else self.storage / "datasets"

    @property
    def tracking_uri(self) -> str:
        """Return the MLflow tracking URI."""
        return self.tracking.uri or f"sqlite:///{self.storage / 'mlflow.db'}"

    @property
    def windows_per_step(self) -> int:
        """Return the windows of `data.seq_len` tokens in one global batch."""
        return self.train.global_batch_tokens // self.data.seq_len
