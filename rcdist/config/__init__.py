"""The settings of a run: their types, the plan string, and how they are read from files and the command line."""

from rcdist.config.architecture import Architecture
from rcdist.config.data import DEFAULT_CORPUS, DataConfig, TokenizerConfig
from rcdist.config.job import CostConfig, DivergenceConfig, JobConfig, OptimizerConfig, ScheduleConfig
from rcdist.config.model import ModelConfig
from rcdist.config.reservoir import ReservoirConfig
from rcdist.config.section import LocalPath, RawTree, Section, per_letter

__all__ = [
    "DEFAULT_CORPUS",
    "Architecture",
    "CostConfig",
    "DataConfig",
    "DivergenceConfig",
    "JobConfig",
    "LocalPath",
    "ModelConfig",
    "OptimizerConfig",
    "RawTree",
    "ReservoirConfig",
    "ScheduleConfig",
    "Section",
    "TokenizerConfig",
    "per_letter",
]
