"""Record runs in MLflow, on SQLite, another database or a server."""

import contextlib
import logging
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from rcdist.errors import ConfigError
from rcdist.tracking.artifacts import artifact_location, follow_move
from rcdist.tracking.connect import check_scheme, check_sqlite, describe, lock_setup, refusing, run_within, sqlite_path
from rcdist.tracking.provenance import collect_tags, flatten_params, redact, redact_tree
from rcdist.tracking.sender import Sender, logger
from rcdist.tracking.tracker import Row, RunStatus, Seen

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

_BATCH_PARAMS = 100
_KIND = "mlflow.experimentKind"
_EXPERIMENT_TAGS = {_KIND: "custom_model_development"}
"""By it MLflow's pages open on runs and charts of training."""
_MAX_TAG_CHARS = 5000


def check_server(uri: str, experiment: str, timeout_s: float) -> None:
    """Prove that the tracking store answers and can be written; create schema and experiment if needed.

    Call it on the driver before anything is started. Jobs that start at the same time may all call it.

    Args:
        uri: MLflow tracking URI.
        experiment: name of the experiment.
        timeout_s: seconds that a server or a lock may take; setting up an SQLite file (2 s) is not counted.

    Raises:
        ConfigError: it does not answer in time, cannot be written, or the experiment is deleted.
    """
    check_scheme(uri)
    with refusing(uri):
        _prepare_mlflow(timeout_s)
        path = sqlite_path(uri)
        if path:
            path.parent.mkdir(parents=True, exist_ok=True)
            with lock_setup(path):
                check_sqlite(path, timeout_s)
                _ensure_experiment(uri, experiment)
        else:
            run_within(timeout_s, lambda: _ensure_experiment(uri, experiment))


def start_or_continue(
    uri: str,
    experiment: str,
    run_name: str,
    run_id: str | None,
    *,
    config: Mapping[str, Any],
    facts: Mapping[str, Any],
    tags: Mapping[str, str],
    timeout_s: float,
) -> "MlflowTracker":
    """Start an MLflow run, or continue one, and return its tracker.

    Settings and facts become parameters (`model.width`), the settings also config.yaml; versions and git commit become
    tags. When a run continues, parameters keep their first value, changed ones become tags `changed/<name>`, and the
    changed settings are stored as config.2.yaml and so on. Passwords in URIs are replaced by ***.

    Args:
        uri: MLflow tracking URI that `check_server` has passed.
        experiment: name of the experiment.
        run_name: name shown in MLflow.
        run_id: run to continue; None: a new one. A run that is not there any more is replaced, with a warning.
        config: resolved settings, nested.
        facts: what else describes the run, nested: parameter counts, digests, workers.
        tags: tags besides versions and commit.
        timeout_s: seconds that one request may take, now and later.

    Raises:
        ConfigError: the server does not answer or refuses.
    """
    with refusing(uri):
        _prepare_mlflow(timeout_s)
        from mlflow.entities import RunTag

        path = sqlite_path(uri)
        with lock_setup(path) if path else contextlib.nullcontext():
            client, experiment_id = _ensure_experiment(uri, experiment)
        all_tags = {name: redact(value)[:_MAX_TAG_CHARS] for name, value in {**collect_tags(), **tags}.items()}
        run = _find_run(client, run_id) if run_id else None
        seen = Seen()
        if run is None:
            if run_id:
                logger.warning("MLflow run %s is not in %s any more; a new run is started.", run_id, redact(uri))
            run = client.create_run(experiment_id, run_name=run_name, tags=all_tags)
        else:
            client.log_batch(run.info.run_id, tags=[RunTag(*tag) for tag in all_tags.items()])
            client.update_run(run.info.run_id, status="RUNNING")
            for name in run.data.metrics:
                seen.add(name, (point.step for point in client.get_metric_history(run.info.run_id, name)))
        is_changed = _log_params(client, run, flatten_params(config) | flatten_params(facts))
        tracker = MlflowTracker(client, uri, run.info.run_id, seen)
    if is_changed is not False:
        tracker.log_config(config)
    return tracker


class MlflowTracker:
    """A Tracker over one MLflow run; rows are sent from a thread of its own and survive an outage of the server.

    Build it with `start_or_continue`.
    """

    def __init__(self, client: "MlflowClient", uri: str, run_id: str, seen: Seen) -> None:
        self._client = client
        self._uri = redact(uri)
        self._run_id = run_id
        self._seen = seen
        self._unstored: set[str] = set()
        self._sender = Sender(self._write, lambda error: f"MLflow at {self._uri}: {describe(error)}")

    @property
    def run_id(self) -> str:
        """Return the id of the MLflow run."""
        return self._run_id

    def log(self, step: int, record: Mapping[str, float], timestamp_ms: int) -> None:
        """See Tracker.log."""
        self._sender.add(self._seen.select_new(step, record, timestamp_ms))

    def log_artifact(self, path: Path) -> bool:
        """See Tracker.log_artifact; waits for the server, at most its timeout per request."""
        return self._store(path.name, lambda: self._client.log_artifact(self._run_id, str(path)))

    def log_config(self, config: Mapping[str, Any]) -> bool:
        """Store the settings as config.yaml, or as config.2.yaml ... when the run has that file."""

        def store() -> None:
            count = sum(1 for file in self._client.list_artifacts(self._run_id) if file.path.startswith("config."))
            name = f"config.{count + 1}.yaml" if count else "config.yaml"
            self._client.log_text(self._run_id, yaml.safe_dump(redact_tree(config), sort_keys=False), name)

        return self._store("config.yaml", store)

    def flush(self, timeout_s: float) -> bool:
        """See Tracker.flush."""
        return self._sender.flush(timeout_s)

    def finish(self, status: RunStatus, timeout_s: float) -> bool:
        """See Tracker.finish; takes at most about twice the timeout. Nothing can be logged afterwards.

        Returns:
            Whether MLflow has everything: values, files and the status.
        """
        is_stored = self.flush(timeout_s)
        if not is_stored:
            logger.warning(
                "MLflow at %s: %d values are not stored; metrics.jsonl has them, the next start of the run sends them.",
                self._uri,
                self._sender.num_pending,
            )
        is_closed = self._try(
            f"the run keeps its status instead of {status}",
            lambda: self._client.set_terminated(self._run_id, status),
        )
        self._sender.close()
        return is_stored and is_closed and not self._unstored

    def _write(self, rows: list[Row]) -> None:
        from mlflow.entities import Metric

        # A store ignores rows it already has, so a batch whose answer was lost may be sent again.
        metrics = [Metric(row.name, row.value, row.timestamp_ms, row.step) for row in rows]
        self._client.log_batch(self._run_id, metrics=metrics)

    def _store(self, name: str, call: Callable[[], None]) -> bool:
        """Store a file, and remember it while it is not stored."""
        is_stored = self._try(f"{name} was not stored", call)
        (self._unstored.discard if is_stored else self._unstored.add)(name)
        return is_stored

    def _try(self, consequence: str, call: Callable[[], None]) -> bool:
        try:
            call()
        except Exception as error:  # tracking never stops a run
            logger.warning("MLflow at %s: %s: %s.", self._uri, consequence, describe(error))
            return False
        return True


def _prepare_mlflow(timeout_s: float) -> None:
    """Import mlflow, quiet, with bounded requests; MLflow reads these variables at every request of this process."""
    os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] = str(math.ceil(timeout_s))
    os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] = "0"  # Sender tries again
    os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"  # it would print a password
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    import mlflow

    assert mlflow.__version__
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # what goes wrong is said once, in one line, by ours


def _ensure_experiment(uri: str, name: str) -> tuple["MlflowClient", str]:
    """Return a client and the id of the experiment, creating it if needed."""
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    client = MlflowClient(uri)
    path = sqlite_path(uri)
    old = follow_move(path, name, _KIND) if path else None
    if path and old:
        logger.info("artifacts of MLflow's runs are in %s now, not in %s.", artifact_location(path), old)
    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        # Without a server MLflow would put artifacts into the working folder; a server decides for itself.
        location = artifact_location(path) if path else None
        try:
            return client, client.create_experiment(name, artifact_location=location, tags=_EXPERIMENT_TAGS)
        except MlflowException:
            experiment = client.get_experiment_by_name(name)  # another job may have been faster
            if experiment is None:
                raise
    if experiment.lifecycle_stage != "active":
        raise ConfigError(
            "tracking.experiment", name, "the experiment is deleted in MLflow", "Restore it, or choose another name"
        )
    return client, experiment.experiment_id


def _find_run(client: "MlflowClient", run_id: str) -> "Run | None":
    from mlflow.exceptions import MlflowException

    try:
        run = client.get_run(run_id)
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return None
        raise
    return run if run.info.lifecycle_stage == "active" else None


def _log_params(client: "MlflowClient", run: "Run", params: dict[str, str]) -> bool | None:
    """Log new parameters, changed ones as tags; return whether some changed, None for a run without parameters."""
    from mlflow.entities import Param, RunTag

    known = run.data.params
    new = [Param(name, value) for name, value in params.items() if name not in known]
    for start in range(0, len(new), _BATCH_PARAMS):
        client.log_batch(run.info.run_id, params=new[start : start + _BATCH_PARAMS])
    changed = {name: value for name, value in params.items() if known.get(name, value) != value}
    if changed:
        tags = [RunTag(f"changed/{name}", value[:_MAX_TAG_CHARS]) for name, value in changed.items()]
        client.log_batch(run.info.run_id, tags=tags)
    return bool(changed) if known else None
