"""SweepConfig: the settings of a search, on top of those of a run, which are the fixed part of every trial."""

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from rcdist.config import JobConfig, RawTree, Section
from rcdist.sweep.objectives import check_cost, check_objectives


class SweepSettings(Section):
    """How the space is searched."""

    trials: Annotated[int, Field(ge=1)] | None = 24
    """Trials, the baseline (plan T) among them; None, with sampler=grid: all of the grid."""
    concurrency: Annotated[int, Field(ge=1)] | None = None
    """Trials at one time, at most; None: as many as the cluster has room for."""
    sampler: Literal["optuna", "random", "grid"] = "optuna"
    """optuna: Gaussian processes and expected hypervolume improvement; random; grid: all combinations, in order."""
    objectives: list[str] = ["eval/bits_per_byte", "cost/usd"]
    """What is minimised: a quality, then, if wanted, a cost; see rcdist/sweep/README.md."""
    cost_from: Literal["flops", "benchmark"] = "flops"
    """Where a trial's cost comes from: its FLOPs at the device's peak, or a short benchmark while nothing else runs."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Seed of the sampler."""
    stop_dominated: bool = True
    """Stop a trial as soon as its lower bound is dominated by one that is finished."""
    front_seeds: Annotated[int, Field(ge=0, le=100)] = 0
    """More seeds with which the front and the baseline are trained again once the trials are done; 0: none."""
    gpus_per_trial: Annotated[float, Field(gt=0, le=1)] = 1.0
    """GPU of a trial with one worker; 0.25: four of them share one."""
    budget_usd: Annotated[float, Field(gt=0)] | None = None
    """Money that all trials together may cost, by the clock: then no other starts, and the exit code is 4."""
    budget_device_s: Annotated[float, Field(gt=0)] | None = None
    """Device seconds that all trials together may take: then no other starts, and the exit code is 4."""
    keep_checkpoints: Literal["front", "all"] = "front"
    """Whose checkpoints are kept: those of the front and of the baseline, or all."""

    @field_validator("objectives")
    @classmethod
    def _known(cls, value: list[str]) -> list[str]:
        check_objectives(value)
        return value

    @model_validator(mode="after")
    def _cost_is_known(self) -> "SweepSettings":
        for name in self.objectives:
            check_cost(name, self.cost_from)
        return self


class SweepConfig(JobConfig):
    """Every setting of a search; those of a run are the fixed part of its trials."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,89}$")] = "sweep"
    """Name of the search; the same name continues the same search."""
    sweep: SweepSettings = SweepSettings()
    space: RawTree = {}
    """What is searched: values, or a range, by dotted key of a run; see rcdist/sweep/README.md."""
