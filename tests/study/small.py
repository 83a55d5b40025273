"""A small study for tests, and a store that holds one as MLflow would have it."""

from pathlib import Path
from typing import Any

from rcdist.config.cli import config_from_dict
from rcdist.estimate.cost import describe_cost
from rcdist.study.settings import StudyConfig
from rcdist.tracking.mlflow import check_server, start_or_continue
from rcdist.tracking.mlflow_runs import STUDY, log_values, set_tags

ARMS: dict[str, Any] = {
    "T": {},
    "U": {"settings": {"reservoir.plan": "U@a", "reservoir.topology": "hadamard"}},
    "narrow": {"settings": {"model.glu_width": 32}, "baseline": "U"},
}
QUALITIES = {"T": {0: 2.00, 1: 2.10, 2: 2.05}, "U": {0: 2.02, 1: 2.11, 2: 2.09}, "narrow": {0: 2.04, 1: 2.12}}
"""Held-out bits per byte by arm and seed of the recorded study."""


def small_study(storage: Path, arms: dict[str, Any] = ARMS, **study: Any) -> StudyConfig:
    """Return the settings of a study whose runs take a second each."""
    tree = {
        "name": "s",
        "storage_path": str(storage),
        "arms": arms,
        "study": study,
        "model": {"num_layers": 2, "width": 32, "glu_width": 64, "vocab_size": 300},
        "reservoir": {"plan": "T"},
        "train": {"steps": 6, "global_batch_tokens": 64},
        "data": {"seq_len": 16},
        "evaluate": {"every_steps": 2, "max_tokens": 256, "yardsticks": False},
        "checkpoint": {"every_steps": None},
    }
    return config_from_dict(tree, StudyConfig)


def record_study(config: StudyConfig) -> None:
    """Write a study of QUALITIES into MLflow: two evaluations a run, times on a CPU, one run that has not ended."""
    uri = config.tracking_uri
    check_server(uri, "rcdist", 10.0)
    parent = start_or_continue(uri, "rcdist", config.name, None, config={}, facts={}, tags={"kind": STUDY}, timeout_s=9)
    for arm, qualities in QUALITIES.items():
        for seed, quality in qualities.items():
            _record_run(config, parent.run_id, arm, seed, quality, "FINISHED")
    _record_run(config, parent.run_id, "narrow", 2, 9.0, "KILLED")
    times = {"T": 1.0, "U": 0.8, "narrow": 0.7}
    values = {
        f"time/cpu/{arm}/{kind}/{part}": value
        for arm, ratio in times.items()
        for kind in ("train", "prefill", "decode")
        for part, value in {"ratio": ratio, "low": ratio - 0.1, "high": ratio + 0.1, "seconds": ratio / 100}.items()
    }
    log_values(uri, {parent.run_id: values}, step=0)
    set_tags(uri, parent.run_id, {"time/cpu": "a processor"})
    assert parent.finish("FINISHED", 30.0)


def _record_run(config: StudyConfig, parent: str, arm: str, seed: int, quality: float, status: Any) -> None:
    run = config.run_config(arm, seed)
    facts = {"cost": {key: value for key, value in describe_cost(run).items() if key != "matrices"}}
    tags = {"mlflow.parentRunId": parent, "study/arm": arm, "study/seed": str(seed), "plan": run.reservoir.plan}
    settings = run.model_dump(mode="json")
    tracker = start_or_continue(
        config.tracking_uri, "rcdist", run.name, None, config=settings, facts=facts, tags=tags, timeout_s=10.0
    )
    for step in (3, 6):
        used = {"train/tokens": 100.0 * step, "cost/device_s": 2.0 * step}
        tracker.log(step, {**used, "eval/bits_per_byte": quality + (6 - step) / 10}, step)
    assert tracker.finish(status, 30.0)
    log_values(
        config.tracking_uri,
        {tracker.run_id: {"evaluate/sea/bits_per_byte": 2 * quality, "evaluate/blimp/accuracy": 0.5 + seed / 100}},
        step=6,
    )
