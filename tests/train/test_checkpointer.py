"""A worker's checkpoints: saved in the background and whole, restored whatever lies there, gone back to."""

import copy
import json
import threading
from collections import namedtuple
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray.train
from ray.train import CheckpointUploadMode

from rcdist.checkpoint.find import Found, checkpoint_name, find_newest_valid, prove_checkpoint
from rcdist.checkpoint.manifest import CONFIG, MANIFEST
from rcdist.checkpoint.state import LoopState
from rcdist.config import Architecture, JobConfig, ModelConfig, TokenizerConfig
from rcdist.data.prepare import PreparedData
from rcdist.data.shards import CorpusInfo
from rcdist.data.tokenizer import build_tokenizer
from rcdist.errors import CheckpointError, DivergedError
from rcdist.model.reservoir import build_bank
from rcdist.tracking.jsonl import MetricsLog
from rcdist.tracking.ledger import Ledger
from rcdist.tracking.prices import resolve_price
from rcdist.train import checkpointer as module
from rcdist.train.checkpointer import Checkpointer
from rcdist.train.events import EVENTS
from rcdist.train.fault_injection import FaultInjector
from rcdist.train.payload import Payload
from tests.checkpoint.test_manifest import make_checkpoint

pytestmark = pytest.mark.usefixtures("one_rank")

STATE = LoopState(step=4, skipped_steps=1, cursor=64, records=[{"step": 4, "timestamp_ms": 1, "train/loss_nats": 2.5}])


def make_payload(config: JobConfig, tokenizer_dir: str = "", resume: Found | None = None) -> Payload:
    """Return what the driver would hand over."""
    corpus = CorpusInfo("", "c", "t", num_tokens=1, num_documents=1, num_bytes=1)
    data = PreparedData(corpus, corpus, tokenizer_dir, "t")
    return Payload(config, data, resolve_price(config.cost, None, 1.0), None, "d", 0, "m", 0.0, resume)


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
def checkpointer(config: JobConfig, tmp_path: Path) -> Checkpointer:
    build_tokenizer(TokenizerConfig(kind="bytes"), 300, []).save(tmp_path / "tokenizer")
    bank = build_bank(Architecture(ModelConfig(num_layers=2, width=32, glu_width=48), config.reservoir))
    engine: Any = SimpleNamespace(snapshot=lambda: {"zero/state.pt": {"weights": b"w" * 100}})
    payload = make_payload(config, str(tmp_path / "tokenizer"))
    return Checkpointer(payload, engine, bank, Ledger(usd=1.0), FaultInjector(config.run_dir, 0))


def test_what_is_saved_is_whole_and_is_sent_with_the_newest_record(
    config: JobConfig, checkpointer: Checkpointer, reports: Reports
) -> None:
    target = config.run_dir / checkpoint_name(4)
    (target / "left").mkdir(parents=True)  # by an earlier attempt at this step
    checkpointer.save(copy.deepcopy(STATE), wait=False)
    metrics, options = reports.sent[-1]
    assert metrics == STATE.records[-1] and options["checkpoint_upload_mode"] == CheckpointUploadMode.ASYNC
    assert not target.exists()
    reports.upload()
    manifest = prove_checkpoint(target).manifest
    assert (manifest.step, manifest.state.cursor, manifest.world_size) == (4, 64, 1) and manifest.state == STATE
    assert (manifest.tokenizer_digest, manifest.data_digest, manifest.mlflow_run_id) == ("t", "c", "m")
    assert manifest.ledger.usd == 1.0 and len(manifest.reservoir["digest"]) == 64
    assert {"zero/state.pt", CONFIG} < set(manifest.files) and not (target / "left").exists()
    assert any(name.startswith("tokenizer/") for name in manifest.files)


def test_a_save_waits_for_the_one_before(checkpointer: Checkpointer, reports: Reports) -> None:
    checkpointer.save(copy.deepcopy(STATE), wait=False)
    second = threading.Thread(
        target=checkpointer.save, args=(LoopState(step=8, records=STATE.records),), kwargs={"wait": True}
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
    checkpointer: Checkpointer,
    reports: Reports,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: usage(1, 1, 10))
    checkpointer.save(copy.deepcopy(STATE), wait=False)
    assert reports.sent == [(STATE.records[-1], {})]
    assert "step 4: checkpoint_skipped: " in capsys.readouterr().out
    with pytest.raises(CheckpointError, match=r"the checkpoint of step 4 cannot be saved: .* and 10 are free"):
        checkpointer.save(copy.deepcopy(STATE), wait=True)


def test_a_write_that_fails_lets_the_next_save_begin(
    checkpointer: Checkpointer, reports: Reports, config: JobConfig
) -> None:
    checkpointer.save(copy.deepcopy(STATE), wait=False)
    (config.run_dir / checkpoint_name(4)).write_text("in the way")
    with pytest.raises(OSError, match="step-00000004"):
        reports.upload()
    checkpointer.save(LoopState(step=8, records=STATE.records), wait=False)
    reports.upload()
    assert prove_checkpoint(config.run_dir / checkpoint_name(8)).manifest.step == 8


class Engine:
    """Remember what was to be restored."""

    def __init__(self) -> None:
        self.restored: list[tuple[str, bool]] = []

    def restore(self, folder: Path, *, is_universal: bool = False) -> None:
        self.restored.append((folder.name, is_universal))


def save(run_dir: Path, step: int, **changes: Any) -> Path:
    """Leave a checkpoint of one worker."""
    folder = make_checkpoint(run_dir, step, world_size=1)
    path = folder / MANIFEST
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return folder


def over(config: JobConfig, resume: Found | None = None) -> tuple[Checkpointer, Engine, Ledger]:
    """Return a checkpointer over an engine that only remembers."""
    engine, ledger = Engine(), Ledger()
    made = Checkpointer(make_payload(config, resume=resume), engine, None, ledger, None)  # type: ignore[arg-type]
    return made, engine, ledger


def test_a_new_run_starts_at_zero(config: JobConfig) -> None:
    checkpointer, engine, _ = over(config)
    assert checkpointer.restore() == (LoopState(), None) and engine.restored == []


def test_all_but_tensors_comes_from_the_manifest_and_the_log_is_completed(config: JobConfig) -> None:
    folder = save(config.run_dir, 20)
    checkpointer, engine, ledger = over(config)
    state, found = checkpointer.restore()
    assert found == folder and engine.restored == [(folder.name, False)]
    assert (state.step, state.cursor, state.skipped_steps, state.spikes.rollbacks) == (20, 320, 2, 1)
    assert ledger.usd == 1.5
    assert [record.step for record in MetricsLog(config.run_dir).read()] == [20]


def test_a_damaged_one_is_named_and_the_one_before_is_used(
    config: JobConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    older, newer = save(config.run_dir, 10), save(config.run_dir, 20)
    (newer / "zero" / "rank0.pt").write_bytes(b"")
    assert over(config)[0].restore()[1] == older
    assert "skipped: " in (output := capsys.readouterr().out) and newer.name in output


def test_what_the_driver_has_proved_and_named_is_neither_read_nor_named_again(
    config: JobConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    older, newer = save(config.run_dir, 10), save(config.run_dir, 20)
    (newer / "zero" / "rank0.pt").write_bytes(b"")
    resume = find_newest_valid(config.run_dir)
    (older / "zero" / "rank0.pt").write_bytes(b"")  # nobody looks
    assert over(config, resume)[0].restore()[1] == older
    assert capsys.readouterr().out == ""


def test_a_start_from_another_run_leaves_that_run_alone(config: JobConfig, tmp_path: Path) -> None:
    parent = save(tmp_path / "runs" / "parent", 10)
    state, found = over(config, prove_checkpoint(parent))[0].restore()
    assert found == parent and state.step == 10
    assert not (parent.parent / "metrics.jsonl").exists() and not (config.run_dir / "metrics.jsonl").exists()


@pytest.mark.parametrize(("stage", "is_converted"), [(2, True), (0, False)])
def test_what_another_number_of_workers_wrote_is_converted_but_for_stage_zero(
    config: JobConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: int, is_converted: bool
) -> None:
    folder = make_checkpoint(config.run_dir, 10, world_size=2)
    path = folder / MANIFEST
    path.write_text(json.dumps(json.loads(path.read_text()) | {"zero_stage": stage}))

    @contextmanager
    def converted(found: Path, *, is_first_of_node: bool) -> Iterator[Path]:
        assert found == folder and is_first_of_node
        yield tmp_path / "universal"

    monkeypatch.setattr(module, "converted", converted)
    monkeypatch.setattr(ray.train, "get_context", lambda: SimpleNamespace(get_local_rank=lambda: 0))
    checkpointer, engine, _ = over(config)
    checkpointer.restore()
    assert engine.restored == [("universal", True) if is_converted else (folder.name, False)]


def test_going_back_takes_tensors_only_and_is_logged(config: JobConfig) -> None:
    folder = save(config.run_dir, 10)
    checkpointer, engine, ledger = over(config)
    checkpointer.go_back(17)
    assert engine.restored == [(folder.name, False)] and ledger == Ledger()
    (event,) = map(json.loads, (config.run_dir / EVENTS).read_text().splitlines())
    assert event["step"] == 17 and event["event"] == "rolled_back" and folder.name in event["detail"]


def test_without_a_checkpoint_there_is_nowhere_to_go_back_to(config: JobConfig) -> None:
    with pytest.raises(DivergedError, match="there is no checkpoint to go back to"):
        over(config)[0].go_back(3)
