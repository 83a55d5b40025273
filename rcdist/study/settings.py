"""StudyConfig: the arms of a study, on top of the settings that all its runs share."""

from typing import Annotated

from pydantic import AfterValidator, Field, model_validator

from rcdist.config import JobConfig, LocalPath, RawTree, Section
from rcdist.config.variation import vary
from rcdist.errors import ConfigError

_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,39}$"


def _known(value: dict[str, LocalPath]) -> dict[str, LocalPath]:
    if "blimp" in value:
        raise ValueError("blimp is what minimal pairs are called. Give study.blimp")
    return value


class Arm(Section):
    """One arm: what it changes of the shared settings, and what it is compared with."""

    settings: RawTree = {}
    """Values by dotted key of a run, on top of the shared ones."""
    baseline: str | None = None
    """Arm that this one is paired with, by seed; None: the first arm."""
    seeds: Annotated[int, Field(ge=1, le=100)] | None = None
    """Seeds it is trained with; None: study.seeds."""


class StudySettings(Section):
    """How the arms are trained, measured and timed."""

    seeds: Annotated[int, Field(ge=1, le=100)] = 1
    """Seeds of each arm: 0, 1, ... is added to the seeds of weights, data order and reservoir."""
    only: list[str] = []
    """Arms that are trained and timed now; none: all. Tables have all that there are."""
    texts: Annotated[dict[str, LocalPath], AfterValidator(_known)] = {}
    """Held-out texts by name (files, globs or folders) that every trained model is measured on."""
    text_column: str = "text"
    """Column of .jsonl and .parquet files among the texts."""
    blimp: LocalPath | None = None
    """Parquet file of minimal pairs, as BLiMP; None: none."""
    max_pairs: Annotated[int, Field(ge=1)] | None = None
    """Minimal pairs of each uid; None: all."""
    gpus_per_run: Annotated[float, Field(gt=0, le=1)] = 1.0
    """GPU of a run; 0.5: two share one, so that one computes while the other starts. Times never come from runs."""
    max_wall_s: Annotated[float, Field(gt=0)] | None = None
    """Seconds after which no other run is begun; the same command goes on. None: no limit."""
    timing_pairs: Annotated[int, Field(ge=3)] = 7
    """Interleaved pairs of an arm and its baseline by which training step, prefill and decode are timed."""
    keep_checkpoints: bool = False
    """Keep the checkpoints of runs that are measured."""


class StudyConfig(JobConfig):
    """Every setting of a study; those of a run are what all arms share."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,39}$")] = "study"
    """Name of the study; the same name continues the same study."""
    study: StudySettings = StudySettings()
    arms: dict[Annotated[str, Field(pattern=_NAME)], Arm] = {}
    """Arms by name; the first is the baseline of those that name no other."""

    @model_validator(mode="after")
    def _arms_exist(self) -> "StudyConfig":
        named = [("study.only", name) for name in self.study.only]
        named += [(f"arms.{arm}.baseline", found.baseline) for arm, found in self.arms.items() if found.baseline]
        for field, name in named:
            if name not in self.arms:
                raise ConfigError(field, name, f"no such arm; there are {', '.join(self.arms) or 'none'}", "Name one")
        return self

    def baseline_of(self, arm: str) -> str:
        """Return the arm that an arm is compared with; the first one is its own."""
        return self.arms[arm].baseline or next(iter(self.arms))

    def seeds_of(self, arm: str) -> int:
        """Return how many seeds an arm is trained with."""
        return self.arms[arm].seeds or self.study.seeds

    def run_config(self, arm: str, seed: int) -> JobConfig:
        """Return the settings of one run.

        Raises:
            ConfigError: the arm changes what there is not, or its values do not go together.
        """
        try:
            return vary(self, f"{self.name}-{arm}-{seed}", self.arms[arm].settings, seed)
        except ConfigError as error:
            raise ConfigError(f"arms.{arm}: {error.field}", error.value, error.rule, error.remedy) from error
