"""Measure a trained model: bits per byte of texts, minimal pairs, tasks of lm-eval; the results go to MLflow too."""

import os
import re
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from rcdist.cluster import ray_session
from rcdist.config import DEFAULT_CORPUS, LocalPath, Section
from rcdist.errors import ConfigError
from rcdist.inference.likelihood import measure_pairs
from rcdist.inference.load import LoadedModel, choose_device, load_model
from rcdist.inference.pool import LikelihoodPool
from rcdist.inference.score import score_text
from rcdist.tracking.connect import sqlite_path
from rcdist.tracking.mlflow_runs import log_values

_UNFIT = re.compile(r"[^\w./ -]+")
"""What MLflow takes in no name."""


class EvaluateArguments(Section):
    """Measure loss, perplexity and bits per byte of a model; --json prints one object instead of rows."""

    checkpoint: LocalPath = "~/rcdist/runs/tiny"
    """A run's folder (its newest checkpoint is used), a step-... folder, or a packed folder of jobs/export.py."""
    text: list[LocalPath] = [DEFAULT_CORPUS]
    """Files (.txt .jsonl .parquet), globs or folders; `austen`: the held-out novel that ships with the package."""
    text_column: str = "text"
    """Column of .jsonl and .parquet files that holds the text."""
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    """Target tokens per entry of `text`; None: all."""
    blimp: LocalPath | None = None
    """Parquet file of minimal pairs (sentence_good, sentence_bad, uid), as BLiMP; None: none."""
    max_pairs: Annotated[int, Field(ge=1)] | None = None
    """Pairs of each uid; None: all."""
    tasks: list[str] = []
    """Tasks of lm-eval by name, or YAML files of its format; needs the extra `eval`."""
    max_examples: Annotated[int, Field(ge=1)] | None = None
    """Of each task; None: all."""
    num_workers: Annotated[int, Field(ge=1)] = 1
    """Ray workers that measure tasks, each with a copy of the model; 1: this process does."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute; auto: on a GPU if there is one."""
    track: bool = True
    """Add the results to the MLflow run that the checkpoint belongs to, if that can be found."""


def evaluate(arguments: EvaluateArguments, say: Callable[[str], None]) -> dict[str, Any]:
    """Measure what the arguments name and return all of it.

    Args:
        arguments: of jobs/evaluate.py.
        say: is given a line as soon as something is measured.

    Raises:
        ConfigError: a task that there is not, or no GPU.
        CheckpointError, DataError: what is to be read cannot be.
    """
    folder = Path(arguments.checkpoint).expanduser()
    run_tasks = _import_harness() if arguments.tasks else None
    device = choose_device(arguments.device)
    loaded = load_model(folder, device)
    about = {"name": loaded.config.name, "step": loaded.step, "plan": loaded.config.reservoir.plan}
    say("{name} at step {step}, plan {plan}".format(**about))
    texts: dict[str, dict[str, float]] = {}
    tasks: dict[str, dict[str, float]] = {}
    needs_ray = bool(arguments.text) or (arguments.tasks and arguments.num_workers > 1)
    with ray_session(loaded.config) if needs_ray else nullcontext():
        for entry in arguments.text:
            texts[entry] = result = score_text(
                loaded, [entry], text_column=arguments.text_column, max_tokens=arguments.max_tokens
            )
            say(f"{entry}: {format_scores(result)}")
        if run_tasks is not None:
            measure = None
            if arguments.num_workers > 1:
                threads = max((os.cpu_count() or 1) // arguments.num_workers, 1)
                kind: Literal["cpu", "cuda"] = "cuda" if device.type == "cuda" else "cpu"
                measure = LikelihoodPool(folder, arguments.num_workers, kind, threads).measure
            tasks = run_tasks(loaded, arguments.tasks, measure, arguments.max_examples)
            for task, metrics in tasks.items():
                say(f"{task}: " + ", ".join(f"{name} {value:.4f}" for name, value in metrics.items()))
    pairs = None
    if arguments.blimp is not None:
        pairs = measure_pairs(loaded, Path(arguments.blimp).expanduser(), arguments.max_pairs)
        say(f"{arguments.blimp}: {pairs['accuracy']:.4f} of {int(pairs['pairs'])} minimal pairs")
    if arguments.track:
        _track(loaded, texts | tasks | ({} if pairs is None else {"blimp": pairs}))
    return about | {"texts": texts, "blimp": pairs, "tasks": tasks}


def format_scores(result: dict[str, float]) -> str:
    """Return one row of the table."""
    return (
        f"{result['eval/bits_per_byte']:.4f} bits/byte, {result['eval/loss_nats']:.4f} nats/token, "
        f"perplexity {result['eval/perplexity']:.2f}, {int(result['tokens'])} tokens"
    )


def _import_harness() -> Any:
    try:
        from rcdist.inference.harness import run_tasks
    except ImportError as error:
        remedy = "Install it: pip install -e '.[eval]'"
        raise ConfigError("tasks", "lm-eval", f"it is not whole here ({error})", remedy) from error
    return run_tasks


def _track(loaded: LoadedModel, results: dict[str, dict[str, float]]) -> None:
    """Add results to the checkpoint's run, under evaluate/<what>/<metric>; a packed folder has none."""
    if loaded.manifest is None or loaded.manifest.mlflow_run_id is None:
        return
    uri = loaded.config.tracking_uri
    file = sqlite_path(uri)
    if file is not None and not file.is_file():
        return  # it would be made
    values = {
        _UNFIT.sub("_", f"evaluate/{Path(what).name}/{metric.removeprefix('eval/')}"): value
        for what, metrics in results.items()
        for metric, value in metrics.items()
    }
    log_values(uri, {loaded.manifest.mlflow_run_id: values}, loaded.step)
