"""The keys of DeepSpeed's configuration that mean something to rcdist, with types for those it does not check."""

from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from rcdist.config.section import Positive, Section
from rcdist.config.validation import to_config_error

Count = Annotated[int, Field(ge=1)]
DataType = Literal["fp32", "fp16", "bf16"]


class _FlopsProfiler(Section):
    enabled: bool = False
    recompute_fwd_factor: Annotated[float, Field(ge=0)] = 0.0
    profile_step: Count = 1
    module_depth: Annotated[int, Field(ge=-1)] = -1
    top_modules: Count = 1
    detailed: bool = True
    output_file: str | None = None


class _Aio(Section):
    block_size: Count = 1_048_576
    queue_depth: Count = 8
    intra_op_parallelism: Count = 1
    single_submit: bool = False
    overlap_events: bool = True
    use_gds: bool = False


class _DataTypes(Section):
    grad_accum_dtype: DataType | None = None


class _Throughput(Section):
    enabled: bool = True
    synchronized: bool = True


class _Timers(Section):
    throughput: _Throughput = _Throughput()


class DeepSpeedKeys(Section):
    """Name every key that may stand in DeepSpeed's configuration of a run.

    DeepSpeed itself passes over a misspelt key of the root and of some sections, and takes any value for scalars.
    Sections that are `dict` here have models of DeepSpeed's own, which `check_raw_keys` asks.
    """

    # Those that rcdist writes.
    train_batch_size: Count = 1
    train_micro_batch_size_per_gpu: Count = 1
    gradient_accumulation_steps: Count = 1
    gradient_clipping: Annotated[float, Field(ge=0)] = 0.0
    optimizer: dict[str, Any] = {}
    scheduler: dict[str, Any] = {}
    fp16: dict[str, Any] = {}
    torch_autocast: dict[str, Any] = {}
    checkpoint: dict[str, Any] = {}
    # Those that a user may want.
    bf16: dict[str, Any] = {}
    zero_optimization: dict[str, Any] = {}
    comms_logger: dict[str, Any] = {}
    tensorboard: dict[str, Any] = {}
    csv_monitor: dict[str, Any] = {}
    wandb: dict[str, Any] = {}
    comet: dict[str, Any] = {}
    aio: _Aio = _Aio()
    data_types: _DataTypes = _DataTypes()
    flops_profiler: _FlopsProfiler = _FlopsProfiler()
    timers: _Timers = _Timers()
    communication_data_type: DataType | None = None
    prescale_gradients: bool = False
    gradient_predivide_factor: Positive = 1.0
    gradient_allreduce_op: Literal["mean"] = "mean"
    managed_gradient_accumulation: bool = True
    disable_allgather: bool = False
    steps_per_print: Count | None = None
    dump_state: bool = False
    wall_clock_breakdown: bool = False
    memory_breakdown: bool = False
    log_level: Literal["debug", "info", "warning", "error", "critical"] | None = None
    disable_python_gc: bool = False
    zero_allow_untested_optimizer: bool = False
    zero_force_ds_cpu_optimizer: bool = True


class _Settings(Section):
    """Put the keys where a user writes them, so that messages name them so."""

    deepspeed: DeepSpeedKeys


def check_keys(written: dict[str, Any]) -> dict[str, Any]:
    """Return a DeepSpeed configuration with every value of its type: a text that is a number is one.

    Args:
        written: merged; no value is "auto" any more.

    Raises:
        ConfigError: an unknown key, or a value that cannot be right.
    """
    try:
        settings = _Settings(deepspeed=written)
    except ValidationError as error:
        raise to_config_error(error, _Settings, {"deepspeed": written}, "of those that rcdist can use") from None
    return settings.deepspeed.model_dump(exclude_unset=True)
