"""A worker's checkpoints: restored whatever lies there, and gone back to."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray.train

from rcdist.checkpoint.find import Found, find_newest_valid, prove_checkpoint
from rcdist.checkpoint.manifest import MANIFEST
from rcdist.checkpoint.state import LoopState, SpikeState
from rcdist.config import JobConfig
from rcdist.data.prepare import PreparedData
from rcdist.data.shards import CorpusInfo
from rcdist.errors import CheckpointError, DivergedError
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


def make_payload(config: JobConfig, tokenizer_dir: str = "", resume: Found | None = None) -> Payload:
    """Return what the driver would hand over."""
    corpus = CorpusInfo("", "c", "t", num_tokens=1, num_documents=1, num_bytes=1, num_lost=0, max_id=1)
    data = PreparedData(corpus, corpus, tokenizer_dir, "t")
    return Payload(config, data, resolve_price(config.cost, None, 1.0), None, "d" * 64, "m", 0.0, resume)


@pytest.fixture
def config(tmp_path: Path) -> JobConfig:
    config = JobConfig(storage_path=str(tmp_path), cluster={"hang_timeout_s": 30})
    config.run_dir.mkdir(parents=True)
    return config


@pytest.fixture(autouse=True)
def sent(monkeypatch: pytest.MonkeyPatch) -> list[dict]:
    """Take what is sent to the controller."""
    sent: list[dict] = []
    monkeypatch.setattr(ray.train, "report", sent.append)
    context = SimpleNamespace(get_local_rank=lambda: 0, get_node_rank=lambda: 0)
    monkeypatch.setattr(ray.train, "get_context", lambda: context)
    return sent


class Engine:
    """Remember what was to be restored."""

    def __init__(self) -> None:
        self.restored: list[tuple[str, bool]] = []

    def restore(self, folder: Path, *, is_universal: bool = False) -> None:
        """Take it."""
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
    payload, faults = make_payload(config, resume=resume), FaultInjector(config.run_dir, 0)
    made = Checkpointer(payload, engine, None, ledger, faults)  # type: ignore[arg-type]
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
    assert sorted(path.name for path in config.run_dir.glob("*step-*")) == [f"damaged-{newer.name}", older.name]


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
    checkpointer, _, ledger = over(config, prove_checkpoint(parent))
    state, found = checkpointer.restore()
    assert found == parent and state.step == 10 and ledger == Ledger()  # what that run has spent is its own
    assert not (parent.parent / "metrics.jsonl").exists() and not (config.run_dir / "metrics.jsonl").exists()


@pytest.mark.parametrize(("stage", "is_converted"), [(2, True), (0, False)])
def test_what_another_number_of_workers_wrote_is_converted_but_for_stage_zero(
    config: JobConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: int, is_converted: bool
) -> None:
    folder = make_checkpoint(config.run_dir, 10, world_size=2)
    path = folder / MANIFEST
    path.write_text(json.dumps(json.loads(path.read_text()) | {"zero_stage": stage}))

    @contextmanager
    def converted(found: Path, *, node: int, is_first_of_node: bool) -> Iterator[Path]:
        assert found == folder and is_first_of_node and node == 0
        yield tmp_path / "universal"

    monkeypatch.setattr(module, "converted", converted)
    checkpointer, engine, _ = over(config)
    checkpointer.restore()
    assert engine.restored == [("universal", True) if is_converted else (folder.name, False)]


def test_weights_of_another_reservoir_are_refused(config: JobConfig) -> None:
    save(config.run_dir, 20, reservoir={"digest": "deadbeef" * 8})
    checkpointer, engine, _ = over(config)
    with pytest.raises(CheckpointError, match="its reservoir has digest deadbeef"):
        checkpointer.restore()
    assert engine.restored == []


def test_what_a_kill_left_half_saved_is_swept_and_what_lacked_only_its_name_is_used(config: JobConfig) -> None:
    save(config.run_dir, 10)
    make_checkpoint(config.run_dir, 20, world_size=1, name="saving-00000020-ab")
    (make_checkpoint(config.run_dir, 30, world_size=1, name="saving-00000030-ab") / MANIFEST).unlink()
    assert over(config)[0].restore()[0].step == 20
    assert not list(config.run_dir.glob("saving-*"))


def test_going_back_takes_tensors_only_is_logged_and_costs_the_steps_since(config: JobConfig) -> None:
    folder = save(config.run_dir, 10)
    checkpointer, engine, ledger = over(config)
    ledger.useful_device_s, spikes = 25.0, SpikeState()
    checkpointer.go_back(17, spikes, 15)
    assert engine.restored == [(folder.name, False)] and spikes.returned_to == [10]
    assert ledger == Ledger(lost_device_s=25.0)
    (event,) = map(json.loads, (config.run_dir / EVENTS).read_text().splitlines())
    assert event["step"] == 17 and event["event"] == "rolled_back" and folder.name in event["detail"]


def test_going_back_passes_over_what_was_saved_in_the_trouble_and_what_did_not_help(config: JobConfig) -> None:
    for step in (10, 20, 30):
        save(config.run_dir, step)
    checkpointer, engine, _ = over(config)
    spikes = SpikeState()
    for step in (33, 36, 39):  # the trouble began at 25
        checkpointer.go_back(step, spikes, 25)
    assert [int(name[-2:]) for name, _ in engine.restored] == [20, 10, 10] and spikes.returned_to == [20, 10, 10]


def test_without_a_checkpoint_from_before_there_is_nowhere_to_go_back_to(config: JobConfig) -> None:
    save(config.run_dir, 10)
    with pytest.raises(DivergedError, match="there is no checkpoint from before to go back to"):
        over(config)[0].go_back(12, SpikeState(), 10)
