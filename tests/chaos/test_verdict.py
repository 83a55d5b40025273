"""A verdict finds what is wrong: windows read twice or not at all, other losses, steps that lack, a false status."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from rcdist.chaos.verdict import Verdict
from rcdist.config import JobConfig
from rcdist.data.order import locate
from rcdist.data.shards import ShardWriter, TokenCorpus
from rcdist.tracking.jsonl import MetricsLog
from rcdist.tracking.mlflow import check_server, start_or_continue
from rcdist.tracking.samples import SampleLog
from rcdist.tracking.tracker import reconcile

STEPS = 4


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    writer = ShardWriter(folder, digest="d", tokenizer_digest="t", vocab_size=100, shard_tokens=1024)
    writer.add(np.arange(2000) % 100, num_bytes=4000)
    writer.finish()
    return folder


def config(storage: Path, name: str) -> JobConfig:
    return JobConfig(
        name=name,
        storage_path=str(storage),
        data={"seq_len": 16},
        train={"steps": STEPS, "log_every_steps": 1, "global_batch_tokens": 64, "micro_batch_size": 1},
    )


def write_run(job: JobConfig, corpus: Path, status: str = "FINISHED") -> None:
    """Leave behind what a run of two attempts does: steps 1 to 3, and again from 3."""
    size = TokenCorpus(corpus, 10**6).num_windows(16)
    job.run_dir.mkdir(parents=True)
    for attempt, steps in ((1, (1, 2, 3)), (2, (3, 4))):
        for rank in range(2):
            log = SampleLog(job.run_dir, attempt, rank)
            for step in steps:
                log.append(step, [locate(c, size, 0) for c in range((step - 1) * 4 + rank, step * 4, 2)])
    metrics = MetricsLog(job.run_dir)
    for step in range(1, STEPS + 1):
        metrics.append(step, step, {"train/loss_nats": 1.0 / step})
    tracker = start_or_continue(job.tracking_uri, "rcdist", job.name, None, config={}, facts={}, tags={}, timeout_s=10)
    reconcile(metrics.read(), tracker)
    tracker.finish(status, timeout_s=30)  # type: ignore[arg-type]


def judge(job: JobConfig, corpus: Path, unbroken: JobConfig | None = None, tolerance: float = 0.0) -> str:
    verdict = Verdict("test")
    verdict.judge_run(job, corpus, unbroken, tolerance=tolerance)
    return "; ".join(verdict.failures)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory, corpus: Path, mlflow_db: Path) -> Path:
    """Write a right run once."""
    job = config(tmp_path_factory.mktemp("storage"), "run")
    shutil.copy(mlflow_db, job.storage)
    check_server(job.tracking_uri, "rcdist", 10)
    write_run(job, corpus)
    return job.storage


@pytest.fixture
def run(tmp_path: Path, written: Path) -> JobConfig:
    shutil.copytree(written, tmp_path, dirs_exist_ok=True)
    return config(tmp_path, "run")


def test_a_right_run_passes_and_its_recovery_is_timed(run: JobConfig, corpus: Path) -> None:
    verdict = Verdict("test")
    verdict.judge_run(run, corpus, run)
    assert verdict.failures == []
    assert len(verdict.recovery_s) == 1


@pytest.mark.parametrize(("step", "tolerance", "is_found"), [(3, 0.0, True), (3, 0.02, False), (2, 0.02, True)])
def test_mlflow_may_hold_another_loss_only_where_a_step_was_done_twice_by_other_workers(
    run: JobConfig, corpus: Path, step: int, tolerance: float, is_found: bool
) -> None:
    path = run.run_dir / "metrics.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    lines[step - 1]["metrics"]["train/loss_nats"] *= 1.01
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = judge(run, corpus, tolerance=tolerance)
    assert (found == f"MLflow's losses are not those of metrics.jsonl at steps [{step}]") == is_found
    assert bool(found) == is_found


@pytest.mark.parametrize("change", ["twice", "lost"])
def test_windows_read_twice_or_not_at_all_are_found(run: JobConfig, corpus: Path, change: str) -> None:
    path = run.run_dir / "samples" / "2-rank-1.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    lines[1]["samples"] = lines[1]["samples"] * 2 if change == "twice" else lines[1]["samples"][1:]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert "steps [4] did not read their windows once each" in judge(run, corpus)


def test_a_step_that_nobody_did_is_found(run: JobConfig, corpus: Path) -> None:
    for path in (run.run_dir / "samples").glob("2-*"):
        path.write_text(path.read_text().splitlines(keepends=True)[0])
    assert "samples of steps [1, 2, 3]" in judge(run, corpus)


def test_other_losses_are_found_and_tolerated_where_they_may_differ(
    run: JobConfig, corpus: Path, tmp_path: Path
) -> None:
    other = config(tmp_path, "other")
    write_run(other, corpus)
    MetricsLog(other.run_dir).append(4, 4, {"train/loss_nats": 0.25 * 1.0001})
    assert "losses differ from the unbroken run's at steps [4]" in judge(run, corpus, other)
    assert judge(run, corpus, other, tolerance=1e-3) == ""


def test_a_record_that_lacks_and_a_false_status_are_found(corpus: Path, written: Path, tmp_path: Path) -> None:
    shutil.copy(written / "mlflow.db", tmp_path)
    job = config(tmp_path, "false")
    write_run(job, corpus, status="FAILED")
    MetricsLog(job.run_dir).truncate_after(3)
    found = judge(job, corpus)
    assert "records of steps [1, 2, 3]" in found
    assert "MLflow status FAILED" in found
    assert "MLflow has steps [1, 2, 3, 4], not [1, 2, 3]" in found
