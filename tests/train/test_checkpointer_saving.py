"""A worker saves in the background and whole; a disk that is full or hangs costs a checkpoint, not the run."""

import copy
import dataclasses
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rcdist.checkpoint.find import checkpoint_name, find_checkpoints, prove_checkpoint
from rcdist.checkpoint.manifest import CONFIG
from rcdist.checkpoint.state import LoopState, SpikeState
from rcdist.config import Architecture, JobConfig, ModelConfig, TokenizerConfig
from rcdist.data.tokenizer import build_tokenizer
from rcdist.errors import CheckpointError
from rcdist.model.reservoir import build_bank
from rcdist.tracking.ledger import Ledger
from rcdist.train import checkpointer as module
from rcdist.train import saves
from rcdist.train.checkpointer import Checkpointer
from rcdist.train.fault_injection import FaultInjector
from tests.train.test_checkpointer import config, make_payload, sent

__all__ = ["config", "sent"]

pytestmark = pytest.mark.usefixtures("one_rank")

STATE = LoopState(step=4, skipped_steps=1, cursor=64, records=[{"step": 4, "timestamp_ms": 1, "train/loss_nats": 2.5}])


@pytest.fixture
def checkpointer(config: JobConfig, tmp_path: Path) -> Checkpointer:
    build_tokenizer(TokenizerConfig(kind="bytes"), 300, []).save(tmp_path / "tokenizer")
    bank = build_bank(Architecture(ModelConfig(num_layers=2, width=32, glu_width=48), config.reservoir))
    contents = {"zero/state.pt": {"weights": b"w" * 100}}
    engine: Any = SimpleNamespace(snapshot=lambda: contents, wait_for_snapshot=lambda: None)
    payload = make_payload(config, str(tmp_path / "tokenizer"))
    return Checkpointer(payload, engine, bank, Ledger(usd=1.0), FaultInjector(config.run_dir, 0))


def test_what_is_saved_is_whole_and_the_newest_record_is_sent(
    config: JobConfig, checkpointer: Checkpointer, sent: list[dict]
) -> None:
    target = config.run_dir / checkpoint_name(4)
    (target / "left").mkdir(parents=True)  # by an earlier attempt at this step
    checkpointer.save(copy.deepcopy(STATE), wait=False)
    assert sent == STATE.records
    assert checkpointer.settle() is None
    manifest = prove_checkpoint(target).manifest
    assert (manifest.step, manifest.state.cursor, manifest.world_size) == (4, 64, 1) and manifest.state == STATE
    assert (manifest.tokenizer_digest, manifest.data_digest, manifest.mlflow_run_id) == ("t", "c", "m")
    assert manifest.ledger.usd == 1.0 and len(manifest.reservoir["digest"]) == 64
    assert {"zero/state.pt", CONFIG} < set(manifest.files) and not (target / "left").exists()
    assert any(name.startswith("tokenizer/") for name in manifest.files)
    assert [path.name for path in config.run_dir.iterdir()] == [checkpoint_name(4)]


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Hold up what is written until it is set."""
    gate = threading.Event()
    write = module.write_rank

    def write_rank(*arguments: Any, **options: Any) -> None:
        gate.wait(30)
        write(*arguments, **options)

    monkeypatch.setattr(module, "write_rank", write_rank)
    return gate


def test_a_save_waits_for_the_one_before(config: JobConfig, checkpointer: Checkpointer, gate: threading.Event) -> None:
    checkpointer.save(copy.deepcopy(STATE), wait=False)
    later = LoopState(step=8, records=STATE.records)
    second = threading.Thread(target=checkpointer.save, args=(later,), kwargs={"wait": True})
    second.start()
    second.join(0.2)
    assert second.is_alive() and find_checkpoints(config.run_dir) == []
    gate.set()
    second.join(20)
    assert [path.name for path in find_checkpoints(config.run_dir)] == [checkpoint_name(8), checkpoint_name(4)]


def test_a_write_that_hangs_is_given_up(config: JobConfig, checkpointer: Checkpointer, gate: threading.Event) -> None:
    config.cluster.hang_timeout_s = 0.2
    checkpointer.save(copy.deepcopy(STATE), wait=False)
    assert "not written within 0.2 s" in str(checkpointer.settle())
    gate.set()
    assert list(config.run_dir.glob("s*-*")) == []


def test_records_go_into_checkpoints_until_one_is_complete(
    config: JobConfig, checkpointer: Checkpointer, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = LoopState()

    def train(steps: int) -> None:
        for _ in range(steps):
            state.step += 1
            state.records.append({"step": state.step, "timestamp_ms": state.step, "train/loss_nats": 2.5})

    train(20)
    checkpointer.save(state, wait=False)
    train(20)
    with monkeypatch.context() as patch:
        patch.setattr(module, "write_rank", lambda *_, **__: (_ for _ in ()).throw(OSError(28, "No space left")))
        checkpointer.save(state, wait=False)  # not written
        checkpointer.settle()
    train(20)
    checkpointer.save(state, wait=True)
    saved = prove_checkpoint(config.run_dir / checkpoint_name(60)).manifest.state.records
    assert [int(record["step"]) for record in saved] == list(range(13, 61))


def test_too_little_room_costs_that_checkpoint_and_at_the_end_the_run(
    config: JobConfig,
    checkpointer: Checkpointer,
    sent: list[dict],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(module.psutil, "disk_usage", lambda _: SimpleNamespace(free=10))
    checkpointer.save(copy.deepcopy(STATE), wait=False)
    assert sent == STATE.records and not list(config.run_dir.glob("s*-*"))
    assert "step 4: checkpoint_skipped: " in capsys.readouterr().out
    with pytest.raises(CheckpointError, match=r"the checkpoint of step 4 cannot be saved: .* and 10 are free"):
        checkpointer.save(copy.deepcopy(STATE), wait=True)


def test_a_disk_that_fills_in_the_middle_of_a_write_does_the_same(
    checkpointer: Checkpointer, config: JobConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fill(folder: Path, *_: Any, **__: Any) -> None:
        (folder / "zero").mkdir()
        (folder / "zero" / "half.pt").write_bytes(b"x")
        raise OSError(28, "No space left on device", str(folder / "zero" / "half.pt"))

    with monkeypatch.context() as patch:
        patch.setattr(module, "write_rank", fill)
        checkpointer.save(copy.deepcopy(STATE), wait=False)
        checkpointer.settle()
        assert "checkpoint_skipped: the checkpoint of step 4 cannot be written: rank 0" in capsys.readouterr().out
        assert not list(config.run_dir.glob("s*-*"))  # what was written takes no room
        with pytest.raises(
            CheckpointError, match=r"step 4 cannot be saved: rank 0: .*half\.pt: No space left on device"
        ):
            checkpointer.save(copy.deepcopy(STATE), wait=True)
    checkpointer.save(LoopState(step=8, records=STATE.records), wait=True)
    assert prove_checkpoint(config.run_dir / checkpoint_name(8)).manifest.step == 8


def test_going_back_waits_for_the_first_save(
    config: JobConfig, checkpointer: Checkpointer, gate: threading.Event
) -> None:
    engine: Any = checkpointer._engine
    engine.restore, restored = lambda folder: restored.append(folder.name), []
    checkpointer._payload = dataclasses.replace(checkpointer._payload, bank_digest=checkpointer._bank.digest())
    checkpointer.save(copy.deepcopy(STATE), wait=False)
    threading.Timer(0.2, gate.set).start()
    checkpointer.go_back(9, SpikeState(), 6)
    assert restored == [checkpoint_name(4)]


def test_whatever_else_goes_wrong_in_the_writing_thread_is_told(
    checkpointer: Checkpointer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(saves, "write_manifest", lambda *_: 1 / 0)
    checkpointer.save(copy.deepcopy(STATE), wait=False)
    assert checkpointer.settle() == "rank 0: ZeroDivisionError: division by zero"
