"""Read runs back from MLflow, and add to runs that have ended."""

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rcdist.tracking.connect import describe
from rcdist.tracking.provenance import redact
from rcdist.tracking.tracker import Row, RunStatus

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

logger = logging.getLogger("rcdist")

_MAX_NOTE_CHARS = 5000
SWEEP = "sweep"
"""Value of the tag `kind` of a run that is the parent of a search's trials."""
STUDY = "study"
"""Value of the tag `kind` of a run that is the parent of a study's runs."""


def log_values(uri: str, values: Mapping[str, Mapping[str, float]], step: int) -> None:
    """Add metrics to runs that have ended; what a server does not take is said, and raises nothing.

    Args:
        uri: MLflow tracking URI.
        values: by run id, values by name.
        step: of the values.
    """
    from mlflow import MlflowClient
    from mlflow.entities import Metric

    now = int(time.time() * 1000)
    try:
        client = MlflowClient(uri)
        for run_id, found in values.items():
            client.log_batch(run_id, metrics=[Metric(name, value, now, step) for name, value in found.items()])
    except Exception as error:
        logger.warning(
            "MLflow at %s: values of runs that have ended were not stored: %s.", redact(uri), describe(error)
        )


def describe_run(uri: str, run_id: str, text: str) -> None:
    """Give a run its description, in Markdown, which MLflow's page of it shows; what goes wrong is said."""
    from mlflow import MlflowClient

    try:
        MlflowClient(uri).set_tag(run_id, "mlflow.note.content", text[:_MAX_NOTE_CHARS])
    except Exception as error:
        logger.warning("MLflow at %s: run %s has no description: %s.", redact(uri), run_id, describe(error))


def set_tags(uri: str, run_id: str, tags: Mapping[str, str]) -> None:
    """Give a run tags; what goes wrong is said."""
    from mlflow import MlflowClient

    try:
        client = MlflowClient(uri)
        for name, value in tags.items():
            client.set_tag(run_id, name, value)
    except Exception as error:
        logger.warning("MLflow at %s: run %s has no tags: %s.", redact(uri), run_id, describe(error))


def terminate(uri: str, run_id: str, status: RunStatus) -> None:
    """Give a run its status for a process that cannot any more; what goes wrong is said."""
    from mlflow import MlflowClient

    try:
        MlflowClient(uri).set_terminated(run_id, status)
    except Exception as error:
        logger.warning("MLflow at %s: run %s keeps its status: %s.", redact(uri), run_id, describe(error))


@dataclass(frozen=True)
class StoredRun:
    """Hold what MLflow keeps of a run: its status and the history of one metric as (step, value) rows."""

    status: str
    history: list[Row]


def read_runs(uri: str, experiment: str, name: str, metric: str) -> list[StoredRun]:
    """Return every run of a name, with the history of one metric."""
    from mlflow import MlflowClient

    client = MlflowClient(uri)
    found = client.get_experiment_by_name(experiment)
    runs = client.search_runs([found.experiment_id], f"attributes.run_name = '{name}'") if found else []
    histories = [client.get_metric_history(run.info.run_id, metric) for run in runs]
    return [
        StoredRun(run.info.status, [Row(metric, m.value, m.timestamp, m.step) for m in history])
        for run, history in zip(runs, histories, strict=True)
    ]


@dataclass(frozen=True)
class TrackedRun:
    """Hold what MLflow has of a run.

    Attributes:
        name: of the run.
        status: RUNNING, FINISHED, FAILED or KILLED.
        params: settings and facts, flat.
        tags: of the run.
        metrics: newest value by name.
        histories: (step, value) by name, of those that were asked for.
    """

    run_id: str
    name: str
    status: str
    params: Mapping[str, str]
    tags: Mapping[str, str]
    metrics: Mapping[str, float]
    histories: Mapping[str, Sequence[tuple[int, float]]]


def list_names(uri: str, experiment: str) -> list[str]:
    """Return the names of the runs of an experiment, newest first, without the trials of searches."""
    from mlflow import MlflowClient

    runs = _search(MlflowClient(uri), experiment, "")
    return list(dict.fromkeys(run.info.run_name for run in runs if "mlflow.parentRunId" not in run.data.tags))


def find_runs(uri: str, experiment: str, name: str, histories: Sequence[str]) -> list[TrackedRun]:
    """Return the runs of a name, the newest first; of a search its trials, of a study its runs, in order.

    Args:
        uri: MLflow tracking URI.
        experiment: name of the experiment.
        name: of runs, of a search or of a study.
        histories: metrics whose history is read too.
    """
    from mlflow import MlflowClient

    client = MlflowClient(uri)
    found = _search(client, experiment, f"attributes.run_name = '{name}'")
    parents = [run for run in found if run.data.tags.get("kind") in (SWEEP, STUDY)]
    if parents:
        found = _children(client, experiment, parents[0])
    return [_read(client, run, histories) for run in found]


def find_study(
    uri: str, experiment: str, name: str, histories: Sequence[str]
) -> tuple[TrackedRun, list[TrackedRun]] | None:
    """Return the newest study of a name, as the run that it is, and its runs in order; None if there is none."""
    from mlflow import MlflowClient

    client = MlflowClient(uri)
    found = _search(client, experiment, f"attributes.run_name = '{name}'")
    parents = [run for run in found if run.data.tags.get("kind") == STUDY]
    if not parents:
        return None
    children = _children(client, experiment, parents[0])
    return _read(client, parents[0], ()), [_read(client, run, histories) for run in children]


def _children(client: "MlflowClient", experiment: str, parent: "Run") -> "list[Run]":
    """Return the runs of a search or study: by number, else in the order of their start."""
    found = _search(client, experiment, f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'")
    return sorted(found, key=lambda run: (int(run.data.tags.get("sweep/trial", 0)), run.info.start_time))


def _read(client: "MlflowClient", run: "Run", histories: Sequence[str]) -> TrackedRun:
    points = {name: client.get_metric_history(run.info.run_id, name) for name in histories if name in run.data.metrics}
    return TrackedRun(
        run_id=run.info.run_id,
        name=run.info.run_name,
        status=run.info.status,
        params=dict(run.data.params),
        tags=dict(run.data.tags),
        metrics=dict(run.data.metrics),
        histories={name: sorted((p.step, p.value) for p in found) for name, found in points.items()},
    )


def _search(client: "MlflowClient", experiment: str, condition: str) -> "list[Run]":
    """Return all runs that meet a condition, newest first."""
    found = client.get_experiment_by_name(experiment)
    if found is None:
        return []
    runs: list[Run] = []
    token = None
    while True:
        page = client.search_runs([found.experiment_id], condition, page_token=token)
        runs.extend(page)
        token = page.token
        if not token:
            return runs
