"""What a process of a study does: train one run after the other, each measured on other text when it is done."""

import hashlib
import json
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rcdist.config import JobConfig
from rcdist.errors import ConfigError, RcdistError
from rcdist.storage import read_json, write_file

RESULT = "study.json"
"""In a run's folder: what it came to. Where it is, nothing is done again."""

_NO_RESULT_DEPENDS_ON = {"name", "storage_path", "tracking", "cluster", "checkpoint", "cost"}


def train_and_measure(
    config: JobConfig,
    tags: Mapping[str, str],
    texts: Mapping[str, str],
    text_column: str,
    pairs: tuple[str, int | None] | None,
    keep_checkpoint: bool,
) -> dict[str, Any]:
    """Train a run in this process, measure the model, and delete its checkpoint.

    Args:
        config: the run.
        tags: of it in MLflow.
        texts: held-out texts by name.
        text_column: of .jsonl and .parquet files.
        pairs: file of minimal pairs, and how many of each uid.
        keep_checkpoint: leave it there.

    Returns:
        `error`, or `metrics` by name; `seconds` by the clock.
    """
    # Here, not above: torch must find the environment that the run sets.
    from rcdist.launch import run

    began = time.monotonic()
    try:
        result = run(config, tags=tags, here=True)
        if result.error is not None:
            raise result.error
        metrics = {name: value for name, value in result.metrics.items() if name.startswith("eval/")}
        metrics |= _measure(config, result.mlflow_run_id, texts, text_column, pairs)
    except RcdistError as error:
        return {"error": str(error), "seconds": time.monotonic() - began}
    used = {"device_s": result.ledger.device_s, "seconds": time.monotonic() - began}
    found = {"metrics": metrics, **used, "settings": identify(config)}
    write_file(config.run_dir / RESULT, json.dumps(found, indent=1))
    if not keep_checkpoint:
        for folder in config.run_dir.glob("step-*"):
            shutil.rmtree(folder, ignore_errors=True)
    return found


def _measure(
    config: JobConfig,
    run_id: str | None,
    texts: Mapping[str, str],
    text_column: str,
    pairs: tuple[str, int | None] | None,
) -> dict[str, float]:
    """Measure the run's model on every text; the values go to its MLflow run."""
    if not texts and pairs is None:
        return {}
    from rcdist.inference.likelihood import measure_pairs
    from rcdist.inference.load import choose_device, load_model
    from rcdist.inference.score import score_text
    from rcdist.tracking.mlflow_runs import log_values

    device = choose_device("auto" if config.cluster.use_gpu in (None, True) else "cpu")
    loaded = load_model(config.run_dir, device)
    found = {}
    for name, entry in texts.items():
        scores = score_text(loaded, [entry], text_column=text_column, max_tokens=None)
        found[f"evaluate/{name}/bits_per_byte"] = scores["eval/bits_per_byte"]
    if pairs is not None:
        found["evaluate/blimp/accuracy"] = measure_pairs(loaded, Path(pairs[0]).expanduser(), pairs[1])["accuracy"]
    if run_id is not None:
        log_values(config.tracking_uri, {run_id: found}, loaded.step)
    return found


def read_result(config: JobConfig) -> dict[str, Any] | None:
    """Return what a run came to, None if it is not done.

    Raises:
        ConfigError: a run of this name was done with other settings.
    """
    found = read_json(config.run_dir / RESULT)
    if found and found.get("settings") != identify(config):
        rule = f"{config.run_dir} is done, with other settings"
        raise ConfigError("name", config.name, rule, "Give the arm or the study another name")
    return found or None


def identify(config: JobConfig) -> str:
    """Return a digest of all settings that what a run comes to depends on."""
    tree = config.model_dump(mode="json", exclude=_NO_RESULT_DEPENDS_ON)
    tree["train"].pop("max_wall_s")
    for key in ("cache_dir", "verify_cache"):
        tree["data"].pop(key)
    return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()
