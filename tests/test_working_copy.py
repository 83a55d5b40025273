"""A run whose storage is a bucket: two nodes without a common folder, a kill while it uploads, and another machine."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from rcdist.bucket import Bucket
from rcdist.chaos.local_cluster import LocalCluster
from rcdist.tracking.jsonl import FILE_NAME, MetricsLog
from tests.conftest import ROOT
from tests.jobs.run import run_in_process, small_arguments
from tests.s3_server import BUCKET, s3_server

URL = f"s3://{BUCKET}/some/folder"
STEPS = 16


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    """Start two nodes that share nothing but the bucket."""
    work = tmp_path_factory.mktemp("work")
    with s3_server():
        cluster = LocalCluster(1, environment={"RCDIST_WORK_DIR": f"{work}/head"})
        try:
            cluster.add_node(1, {"RCDIST_WORK_DIR": f"{work}/node"})
            yield cluster
        finally:
            cluster.stop()


def run(cluster: LocalCluster, storage: str, work: Path, *arguments: str, fault: str = "") -> tuple[int, str]:
    settings = [
        f"--train.steps={STEPS}",
        "--checkpoint.every_steps=4",
        "--cluster.num_workers=2",
        f"--storage_path={storage}",
    ]
    command = [sys.executable, str(ROOT / "jobs" / "pretrain.py"), *small_arguments(Path("x"), *settings, *arguments)]
    environment = {**os.environ, **cluster.environment, "RCDIST_WORK_DIR": str(work), "RCDIST_FAULT": fault}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.exhaustive
def test_it_goes_on_elsewhere_with_the_same_losses(cluster: LocalCluster, tmp_path: Path) -> None:
    database = f"--tracking.uri=sqlite:///{tmp_path}/mlflow.db"
    code, output = run(cluster, URL, tmp_path / "a", "--cluster.max_failures=0", database, fault="kill:upload:8")
    assert code == 6, output
    bucket = Bucket(URL)
    saved = {name.partition("/")[0] for name in bucket.list("runs/tiny") if name.startswith("step-")}
    assert {name.rpartition("-")[0] for name in saved} == {"step-00000004", "step-00000008"}
    assert not any(
        name.startswith("step-00000008") and name.endswith("manifest.json") for name in bucket.list("runs/tiny")
    )
    code, output = run(cluster, URL, tmp_path / "b", database)  # a driver on another machine
    assert code == 0, output
    assert "resumed from step-00000004 at step 4" in output
    assert not (tmp_path / "a" / "runs").exists()
    (tmp_path / FILE_NAME).write_bytes(bucket.read(f"runs/tiny/{FILE_NAME}"))
    code, output = run(cluster, str(tmp_path / "folder"), tmp_path / "c")
    assert code == 0, output
    losses = [
        [
            (record.step, record.metrics["train/loss_nats"], record.metrics.get("eval/loss_nats"))
            for record in log.read()
        ]
        for log in (MetricsLog(tmp_path), MetricsLog(tmp_path / "folder" / "runs" / "tiny"))
    ]
    assert losses[0] == losses[1] and len(losses[0]) == STEPS
    # What is left are the newest two, the best, one that goes with the next save, and nothing that was never whole.
    names = [name for name in bucket.list("runs/tiny") if name.startswith("step-")]
    kept = {name.partition("/")[0] for name in names}
    assert {"step-00000012", "step-00000016"} <= {save.rpartition("-")[0] for save in kept} and len(kept) <= 4
    assert all(f"{save}/manifest.json" in names for save in kept)
    assert not bucket.exists("runs/tiny/lease.json")
    code, output = run(cluster, URL, tmp_path / "d", database)
    assert code == 0 and f"has all {STEPS} steps" in output


@pytest.mark.parametrize("is_strict", [False, True])
def test_a_bucket_that_cannot_be_written_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, is_strict: bool
) -> None:
    monkeypatch.setenv("RCDIST_WORK_DIR", str(tmp_path))
    url = URL if is_strict else "s3://not-there-at-all/x"
    with s3_server(is_strict=is_strict):
        assert run_in_process("pretrain.py", small_arguments(Path("x"), f"--storage_path={url}")) == 2
    err = capsys.readouterr().err
    assert (
        err.count("\n") == 1 and err.startswith(f'storage_path="{url}": cannot be written (') and "credentials" in err
    )
    assert ("INVALID_ACCESS_KEY_ID" if is_strict else "NO_SUCH_BUCKET") in err


@pytest.mark.parametrize(
    ("script", "arguments", "expected"),
    [
        ("pretrain.py", ["--storage_path=ftp://a/b"], "neither a folder nor a bucket"),
        (
            "pretrain.py",
            [f"--storage_path={URL}", "--checkpoint.resume_from=x"],
            "starts from a checkpoint in the bucket",
        ),
        ("sweep.py", [f"--storage_path={URL}"], "a search needs a folder"),
    ],
)
def test_what_a_bucket_is_not_for_is_one_line(
    capsys: pytest.CaptureFixture[str], script: str, arguments: list[str], expected: str
) -> None:
    assert run_in_process(script, [*small_arguments(Path("x")), *arguments]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and expected in err
