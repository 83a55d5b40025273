"""A save copies the state, writes in the background what the manifest then lists, and survives a full disk."""

import threading
from collections import namedtuple
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray.train
from ray.train import CheckpointUploadMode

from rcdist.config import JobConfig, ModelConfig, TokenizerConfig
from rcdist.data.tokenizer import build_tokenizer
from rcdist.errors import CheckpointError
from rcdist.model.reservoir import build_bank
from rcdist.tracking.ledger import Ledger
from rcdist.train import saver as module
from rcdist.train.checkpoint import CONFIG, checkpoint_name, verify_checkpoint
from rcdist.train.faults import Faults
from rcdist.train.saver import Saver
from rcdist.train.state import LoopState

pytestmark = pytest.mark.usefixtures("one_rank")

STATE = LoopState(step=4, skipped_steps=1, cursor=64, records=[{"step": 4, "timestamp_ms": 1, "train/loss_nats": 2.5}])


class Reports:
    """Take what is sent to the controller; `upload` does what Ray's thread would do."""

    def __init__(self, storage: Path) -> None:
        self.sent: list[tuple[dict, dict[str, Any]]] = []
        self._storage = storage

    def report(self, metrics: dict, **options: Any) -> None:
        self.sent.append((metrics, options))

    def upload(self) -> None:
        options = self.sent[-1][1]
        options["checkpoint_upload_fn"](options["checkpoint"], options["checkpoint_dir_name"])

    def get_storage(self) -> SimpleNamespace:
        return SimpleNamespace(experiment_fs_path=str(self._storage), storage_filesystem=None)


@pytest.fixture
def config(tmp_path: Path) -> JobConfig:
    config = JobConfig(storage_path=str(tmp_path), cluster={"hang_timeout_s": 30})
    config.run_dir.mkdir(parents=True)
    return config


@pytest.fixture
def reports(config: JobConfig, monkeypatch: pytest.MonkeyPatch) -> Reports:
    reports = Reports(config.run_dir)
    monkeypatch.setattr(ray.train, "report", reports.report)
    monkeypatch.setattr(ray.train, "get_context", lambda: reports)
    return reports


@pytest.fixture
def saver(config: JobConfig, tmp_path: Path) -> Saver:
    build_tokenizer(TokenizerConfig(kind="bytes"), 300, []).save(tmp_path / "tokenizer")
    payload = {
        "tokenizer_dir": str(tmp_path / "tokenizer"),
        "tokenizer_digest": "t",
        "mlflow_run_id": "m",
        "train_corpus": SimpleNamespace(digest="c"),
    }
    bank = build_bank(ModelConfig(num_layers=2, width=32, glu_width=48), config.reservoir)
    engine: Any = SimpleNamespace(snapshot=lambda: {"zero/state.pt": {"weights": b"w" * 100}})
    return Saver(config, payload, engine, bank, Ledger(usd=1.0), Faults(config.run_dir, 0))


def test_what_is_saved_is_whole_and_is_sent_with_the_newest_record(
    config: JobConfig, saver: Saver, reports: Reports
) -> None:
    target = config.run_dir / checkpoint_name(4)
    (target / "left").mkdir(parents=True)  # by an earlier attempt at this step
    saver.save(STATE, wait=False)
    metrics, options = reports.sent[-1]
    assert metrics == STATE.records[-1] and options["checkpoint_upload_mode"] == CheckpointUploadMode.ASYNC
    assert not target.exists()
    reports.upload()
    manifest = verify_checkpoint(target)
    assert (manifest.step, manifest.cursor, manifest.skipped_steps, manifest.world_size) == (4, 64, 1, 1)
    assert (manifest.tokenizer_digest, manifest.data_digest, manifest.mlflow_run_id) == ("t", "c", "m")
    assert manifest.ledger["usd"] == 1.0 and len(manifest.reservoir["digest"]) == 64
    assert {"zero/state.pt", CONFIG} < set(manifest.files) and not (target / "left").exists()
    assert any(name.startswith("tokenizer/") for name in manifest.files)


def test_a_save_waits_for_the_one_before(saver: Saver, reports: Reports) -> None:
    saver.save(STATE, wait=False)
    second = threading.Thread(
        target=saver.save, args=(LoopState(step=8, records=STATE.records),), kwargs={"wait": True}
    )
    second.start()
    second.join(0.2)
    assert second.is_alive() and len(reports.sent) == 1
    reports.upload()
    second.join(20)
    assert not second.is_alive() and len(reports.sent) == 2
    assert reports.sent[-1][1]["checkpoint_upload_mode"] == CheckpointUploadMode.SYNC


def test_a_full_disk_costs_that_checkpoint_and_at_the_end_the_run(
    config: JobConfig,
    saver: Saver,
    reports: Reports,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: usage(1, 1, 10))
    saver.save(STATE, wait=False)
    assert reports.sent == [(STATE.records[-1], {})]
    assert "step 4: not saved: " in capsys.readouterr().out
    with pytest.raises(CheckpointError, match=r"the checkpoint of step 4 cannot be saved: .* and 10 are free"):
        saver.save(STATE, wait=True)


def test_a_write_that_fails_lets_the_next_save_begin(saver: Saver, reports: Reports, config: JobConfig) -> None:
    saver.save(STATE, wait=False)
    (config.run_dir / checkpoint_name(4)).write_text("in the way")
    with pytest.raises(OSError, match="step-00000004"):
        reports.upload()
    saver.save(LoopState(step=8, records=STATE.records), wait=False)
    reports.upload()
    assert verify_checkpoint(config.run_dir / checkpoint_name(8)).step == 8
