"""A run from settings to result: with real data, record and MLflow; with Ray Train itself where it is slow."""

import contextlib
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import ray.train
import torch
from mlflow import MlflowClient

from rcdist import launch as module
from rcdist import trainer
from rcdist.checkpoint.manifest import CONFIG, MANIFEST
from rcdist.cluster import Workers, planned_workers
from rcdist.config import JobConfig
from rcdist.config.job import CheckpointConfig
from rcdist.data.prepare import prepare_corpora
from rcdist.errors import EXIT_DONE, BudgetError, CheckpointError, ConfigError, DivergedError, RcdistError
from rcdist.launch import RunResult, launch, run
from rcdist.lease import Lease
from rcdist.model.reservoir import build_bank
from rcdist.record import is_complete
from rcdist.tracking.jsonl import LogRecord, MetricsLog
from rcdist.tracking.ledger import Ledger
from rcdist.train.control import write_stop
from rcdist.train.meter import LedgerFile
from rcdist.train.payload import Payload
from tests.checkpoint.test_manifest import make_checkpoint
from tests.jobs.run import small_config

Fit = Callable[[Payload], None]


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory, mlflow_db: Path) -> Path:
    """Return a storage whose text is some kilobytes."""
    folder = tmp_path_factory.mktemp("storage")
    shutil.copy(mlflow_db, folder)
    (folder / "text.txt").write_text("the quick brown fox jumps over the lazy dog\n" * 200)
    return folder


@pytest.fixture
def config(storage: Path, request: pytest.FixtureRequest) -> JobConfig:
    name = request.node.name.replace("[", "-").replace("]", "").replace(" ", "-")[:80]
    return JobConfig(
        name=name,
        storage_path=str(storage),
        model={"num_layers": 2, "width": 32, "glu_width": 48, "vocab_size": 300},
        reservoir={"source": "regenerate", "plan": "c@a+r@b"},
        tokenizer={"kind": "bytes"},
        data={"train": [f"{storage}/text.txt"], "validation": [f"{storage}/text.txt"], "seq_len": 64},
        train={"steps": 3, "global_batch_tokens": 64},
    )


@pytest.fixture
def fit(monkeypatch: pytest.MonkeyPatch) -> Callable[[Fit], None]:
    """Let a function stand for Ray Train, and no Ray be started."""
    monkeypatch.setattr(module, "ray_session", lambda config: contextlib.nullcontext())
    monkeypatch.setattr(module, "resolve_workers", planned_workers)

    def use(function: Fit) -> None:
        def fit(payload: Payload, workers: Workers, callbacks: Sequence[Any]) -> None:
            function(payload)

        monkeypatch.setattr(trainer, "fit", fit)

    return use


def train(payload: Payload, last: int = 3) -> None:
    """Leave what workers and controller leave of a run."""
    for step in range(1, last + 1):
        metrics = {"train/loss_nats": 4.0 / step, "train/tokens": 64.0 * step}
        MetricsLog(payload.config.run_dir).append(step, step, metrics)
    LedgerFile(payload.config.run_dir, 1.0).write(Ledger(usd=0.5, device_s=7.0), now=True)
    folder = make_checkpoint(payload.config.run_dir, last)
    (folder / CONFIG).write_text(payload.config.model_dump_json())


def status_in_mlflow(config: JobConfig, result: RunResult) -> str:
    status: str = MlflowClient(config.tracking_uri).get_run(str(result.mlflow_run_id)).info.status
    return status


def test_the_result_of_a_finished_run(
    config: JobConfig, fit: Callable[[Fit], None], capsys: pytest.CaptureFixture[str]
) -> None:
    fit(train)
    seen: list[LogRecord] = []
    before = dict(os.environ)
    result = run(config, on_record=seen.append)
    assert capsys.readouterr() == ("", "")
    assert os.environ == before
    assert (result.status, result.step, result.error) == ("FINISHED", 3, None)
    assert result.metrics["train/tokens"] == 192.0 and result.metrics["yardstick/gzip_bits_per_byte"] > 0
    assert result.checkpoint == config.run_dir / "step-00000003"
    assert result.ledger == Ledger(usd=0.5, device_s=7.0)
    assert [record.step for record in seen] == [1, 2, 3]
    assert status_in_mlflow(config, result) == "FINISHED"
    params = MlflowClient(config.tracking_uri).get_run(str(result.mlflow_run_id)).data.params
    assert 0.9 < float(params["reservoir_spectral_radius.r:b"]) < 1.1  # MLflow takes no @
    assert "(FINISHED)" in (config.run_dir / "summary.txt").read_text()


def stop(error: RcdistError) -> Fit:
    """Return a run that ends by an error after step 2, as a worker tells it."""

    def function(payload: Payload) -> None:
        train(payload, 2)
        write_stop(payload.config.run_dir, error)

    return function


def fail(error: Exception) -> Fit:
    """Return a run that ends by what Ray Train raises."""

    def function(payload: Payload) -> None:
        train(payload, 2)
        raise error

    return function


@pytest.mark.parametrize(
    ("function", "status", "kind"),
    [
        (stop(BudgetError("cost.budget_usd", 1.0, "used up", "Raise it")), "KILLED", BudgetError),
        (stop(DivergedError("train.on_nonfinite", "stop", "NaN", "Lower it")), "FAILED", DivergedError),
        (fail(CheckpointError("storage_path", "x", "full", "Make room")), "FAILED", CheckpointError),
    ],
    ids=["budget", "diverged", "full"],
)
def test_a_run_that_ends_by_an_error_of_ours_has_a_result_too(
    config: JobConfig, fit: Callable[[Fit], None], function: Fit, status: str, kind: type[RcdistError]
) -> None:
    fit(function)
    result = run(config)
    assert (result.status, result.step, type(result.error)) == (status, 2, kind)
    assert result.metrics["train/loss_nats"] == 2.0 and result.checkpoint is not None
    assert status_in_mlflow(config, result) == status
    shutil.rmtree(result.checkpoint)  # not a real one: it is not to be continued from
    with pytest.raises(kind):
        launch(config)


def test_what_nobody_expected_is_raised_and_mlflow_says_failed(config: JobConfig, fit: Callable[[Fit], None]) -> None:
    fit(fail(ZeroDivisionError()))
    with pytest.raises(ZeroDivisionError):
        run(config)
    client = MlflowClient(config.tracking_uri)
    experiment = client.get_experiment_by_name(config.tracking.experiment)
    (found,) = client.search_runs([experiment.experiment_id], f"attributes.run_name = '{config.name}'")
    assert found.info.status == "FAILED"


def test_a_run_that_has_all_its_steps_is_not_started_again(
    config: JobConfig, fit: Callable[[Fit], None], capsys: pytest.CaptureFixture[str]
) -> None:
    fit(train)
    first = run(config)
    # The driver was killed before it could say so to MLflow.
    MlflowClient(config.tracking_uri).update_run(str(first.mlflow_run_id), status="RUNNING")
    (config.run_dir / "run.json").write_text(json.dumps({"mlflow_run_id": first.mlflow_run_id, "is_complete": False}))
    fit(fail(AssertionError("it is started")))
    again = run(config)
    assert status_in_mlflow(config, again) == "FINISHED" and is_complete(config.run_dir)
    assert (again.status, again.step, again.metrics, again.ledger) == ("FINISHED", 3, first.metrics, first.ledger)
    assert launch(config) == EXIT_DONE
    assert "has all 3 steps in" in capsys.readouterr().out


def test_launch_prints_what_goes_on_and_leaves_logging_as_it_was(
    config: JobConfig, fit: Callable[[Fit], None], capsys: pytest.CaptureFixture[str]
) -> None:
    fit(train)
    handlers = list(module.logger.handlers)
    assert launch(config) == EXIT_DONE
    out = capsys.readouterr().out
    assert module.logger.handlers == handlers and module.logger.propagate
    for text in ("parameters: ", "memory per worker: ", "measured spectral radius: r@b ", "step 3/3", "(FINISHED)"):
        assert text in out


def test_nothing_is_written_for_settings_that_cannot_work(config: JobConfig) -> None:
    config = config.model_copy(update={"deepspeed": {"train_batch_size": 1}})
    with pytest.raises(ConfigError, match="train_batch_size"):
        run(config)
    assert not config.run_dir.exists()


def test_a_run_that_is_held_is_refused_and_left_alone(config: JobConfig) -> None:
    with Lease(config.run_dir, config.name):
        before = list(config.run_dir.iterdir())
        with pytest.raises(ConfigError, match=f"the run is held by process {os.getpid()} on "):
            run(config)
        assert list(config.run_dir.iterdir()) == before


def leave_parent(config: JobConfig, digest: str) -> tuple[JobConfig, Path]:
    """Leave a checkpoint of another run; return the settings of a run that starts from it."""
    bank = build_bank(config.architecture)
    parent = config.storage / "runs" / f"{config.name}-parent"
    folder = make_checkpoint(parent, 1)
    manifest = json.loads((folder / MANIFEST).read_text())
    data = prepare_corpora(config, lambda line: None)
    manifest |= {"reservoir": {"digest": digest or bank.digest()}}
    manifest |= {"tokenizer_digest": data.tokenizer_digest, "data_digest": data.train.digest}
    (folder / MANIFEST).write_text(json.dumps(manifest))
    files: dict[str, Any] = json.loads((folder / "files-00000.json").read_text())
    torch.save({"weights": torch.ones(3)}, folder / "zero" / "rank0.pt")
    (folder / CONFIG).write_text(config.model_dump_json())
    for name in ("zero/rank0.pt", CONFIG):
        content = (folder / name).read_bytes()
        files[name] = {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    (folder / "files-00000.json").write_text(json.dumps(files))
    (folder / "files-00001.json").write_text("{}")
    (folder / "zero" / "rank1.pt").unlink()
    return config.model_copy(update={"checkpoint": CheckpointConfig(resume_from=str(parent))}), folder


def test_a_start_from_another_run_reads_a_copy_that_nobody_else_can_change(
    config: JobConfig, fit: Callable[[Fit], None]
) -> None:
    child, folder = leave_parent(config, digest="")
    seen: list[tuple[Path, int]] = []

    def look(payload: Payload) -> None:
        assert payload.resume is not None
        copy = payload.resume.folder
        seen.append((copy, copy.parent.stat().st_mode & 0o777))
        assert (copy / "zero" / "rank0.pt").read_bytes() == (folder / "zero" / "rank0.pt").read_bytes()
        train(payload)

    fit(look)
    assert run(child).status == "FINISHED"
    ((copy, mode),) = seen
    assert copy.parent.parent == child.run_dir and mode == 0o700 and not copy.exists() and folder.exists()


def test_weights_of_another_reservoir_are_refused_before_anything_is_written(
    config: JobConfig, fit: Callable[[Fit], None]
) -> None:
    fit(train)
    child, _ = leave_parent(config, digest="deadbeef" * 8)
    with pytest.raises(CheckpointError, match="its reservoir has digest deadbeef"):
        run(child)
    assert not child.run_dir.exists()


class Callback(ray.train.UserCallback):
    """Write down what Ray's controller was told, as a TuneReportCallback would report it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
        with self.path.open("a") as file:
            file.write(f"{metrics[0]['step']}\n")


@pytest.mark.exhaustive
@pytest.mark.usefixtures("ray_cpu")
def test_a_real_run_with_a_callback(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = small_config(tmp_path, "--train.steps=4", "--evaluate.yardsticks=false")
    before, seen = dict(os.environ), []
    result = run(config, callbacks=[Callback(tmp_path / "told")], on_record=lambda record: seen.append(record.step))
    assert os.environ == before and ray.is_initialized()
    sys.stdout.flush()
    lines = capsys.readouterr().out.splitlines()
    assert not [line for line in lines if line.strip() and "pid=" not in line], lines  # workers' lines are Ray's
    assert (result.status, result.step) == ("FINISHED", 4)
    assert (tmp_path / "told").read_text().split() == ["1", "2", "3", "4"] and seen == [1, 2, 3, 4]
    assert result.ledger.tokens == 4 * config.train.global_batch_tokens
    assert result.ledger.device_s >= result.metrics["cost/device_s"] > 0
    assert result.checkpoint == config.run_dir / "step-00000004"
