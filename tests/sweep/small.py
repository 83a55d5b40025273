"""A small search for tests, and trials as it would have them."""

from pathlib import Path
from typing import Any

from rcdist.config.cli import config_from_dict
from rcdist.sweep.settings import SweepConfig
from rcdist.sweep.trials import Trial

SPACE: dict[str, Any] = {
    "reservoir": {
        "plan": {"letters": ["c", "G", "cG"], "pattern": ["x", "T x"]},
        "topology": ["dense", "hadamard"],
        "input_scaling": {"low": 0.5, "high": 2.0, "log": True},
    }
}
GRID: dict[str, Any] = {"reservoir": {"plan": {"letters": ["c", "G"], "pattern": ["x", "T x"]}}}


def small_sweep(storage: Path, space: dict[str, Any] = SPACE, **sweep: Any) -> SweepConfig:
    """Return the settings of a search over small models."""
    tree = {
        "name": "s",
        "storage_path": str(storage),
        "space": space,
        "sweep": {"trials": 6, **sweep},
        "model": {"num_layers": 4, "width": 32, "glu_width": 64, "vocab_size": 300},
        "train": {"steps": 12, "global_batch_tokens": 64},
        "data": {"seq_len": 16},
    }
    return config_from_dict(tree, SweepConfig)


def finished(number: int, quality: float, cost: float, **more: Any) -> Trial:
    """Return a finished trial of two objectives."""
    fields: dict[str, Any] = {
        "plan": "T" if number == 0 else "c",
        "values": {} if number == 0 else {"reservoir.plan.letters": "c", "n": number},
        "status": "finished",
        "costs": {"cost/usd": cost, "cost/device_s": cost * 100, "model/stored_parameters": 1e6 * cost},
        "qualities": {"eval/bits_per_byte": quality},
        "curve": [(256.0, quality + 1), (512.0, quality + 0.5), (768.0, quality)],
        "used_s": 10.0,
        "used_usd": 0.01,
    }
    return Trial(number, **{**fields, **more})
