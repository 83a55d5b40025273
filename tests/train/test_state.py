"""A start finds the newest valid checkpoint, whatever lies beside it; going back takes tensors and nothing else."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray.train

from rcdist.config import JobConfig
from rcdist.errors import DivergedError
from rcdist.tracking.jsonl import MetricsLog
from rcdist.tracking.ledger import Ledger
from rcdist.train import state as module
from rcdist.train.checkpoint import MANIFEST
from rcdist.train.events import EVENTS
from rcdist.train.state import LoopState, go_back, restore
from tests.train.test_checkpoint import make_checkpoint

pytestmark = pytest.mark.usefixtures("one_rank")


class Engine:
    """Remember what was to be restored."""

    def __init__(self) -> None:
        self.restored: list[tuple[str, bool]] = []

    def restore(self, folder: Path, *, is_universal: bool = False) -> None:
        self.restored.append((folder.name, is_universal))


def job(tmp_path: Path) -> JobConfig:
    return JobConfig(storage_path=str(tmp_path))


def save(run_dir: Path, step: int, **changes: Any) -> Path:
    """Leave a checkpoint of one worker."""
    folder = make_checkpoint(run_dir, step)
    path = folder / MANIFEST
    records = [{"step": step, "timestamp_ms": step, "train/loss_nats": 1.0}]
    path.write_text(json.dumps(json.loads(path.read_text()) | {"world_size": 1, "records": records} | changes))
    return folder


def start(config: JobConfig, engine: Engine, resume_from: Path | None = None) -> tuple[Path | None, LoopState, Ledger]:
    ledger, state = Ledger(), LoopState()
    found = restore({"resume_from": resume_from}, config, engine, ledger, state)  # type: ignore[arg-type]
    return found, state, ledger


def test_a_new_run_starts_at_zero(tmp_path: Path) -> None:
    found, state, _ = start(job(tmp_path), engine := Engine())
    assert found is None and state == LoopState() and engine.restored == []


def test_all_but_tensors_comes_from_the_manifest_and_the_log_is_completed(tmp_path: Path) -> None:
    config = job(tmp_path)
    folder = save(config.run_dir, 20, skipped_steps=2, ledger={"usd": 1.5}, spikes={"rollbacks": 1})
    found, state, ledger = start(config, engine := Engine())
    assert found == folder and engine.restored == [(folder.name, False)]
    assert (state.step, state.cursor, state.skipped_steps, state.spikes.rollbacks) == (20, 320, 2, 1)
    assert ledger.usd == 1.5
    assert [record.step for record in MetricsLog(config.run_dir).read()] == [20]


def test_a_damaged_one_is_named_and_the_one_before_is_used(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = job(tmp_path)
    older, newer = save(config.run_dir, 10), save(config.run_dir, 20)
    (newer / "zero" / "rank0.pt").write_bytes(b"")
    assert start(config, Engine())[0] == older
    assert "skipped: " in (output := capsys.readouterr().out) and newer.name in output


def test_a_start_from_another_run_leaves_that_run_alone(tmp_path: Path) -> None:
    config = job(tmp_path)
    parent = save(tmp_path / "runs" / "parent", 10)
    found, state, _ = start(config, Engine(), resume_from=parent)
    assert found == parent and state.step == 10
    assert not (parent.parent / "metrics.jsonl").exists() and not (config.run_dir / "metrics.jsonl").exists()


@pytest.mark.parametrize(("stage", "is_converted"), [(2, True), (0, False)])
def test_what_another_number_of_workers_wrote_is_converted_but_for_stage_zero(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: int, is_converted: bool
) -> None:
    config = job(tmp_path)
    folder = save(config.run_dir, 10, world_size=2, zero_stage=stage)

    @contextmanager
    def converted(found: Path, *, is_first_of_node: bool) -> Iterator[Path]:
        assert found == folder and is_first_of_node
        yield tmp_path / "universal"

    monkeypatch.setattr(module, "converted", converted)
    monkeypatch.setattr(ray.train, "get_context", lambda: SimpleNamespace(get_local_rank=lambda: 0))
    start(config, engine := Engine())
    assert engine.restored == [("universal", True) if is_converted else (folder.name, False)]


def test_going_back_keeps_step_and_data_and_tells_it(tmp_path: Path) -> None:
    config, state = job(tmp_path), LoopState(step=17, cursor=99)
    folder = save(config.run_dir, 10)
    go_back(config, engine := Engine(), state)  # type: ignore[arg-type]
    assert engine.restored == [(folder.name, False)] and (state.step, state.cursor) == (17, 99)
    (event,) = map(json.loads, (config.run_dir / EVENTS).read_text().splitlines())
    assert event["step"] == 17 and event["event"] == "went back" and folder.name in event["detail"]


def test_without_a_checkpoint_there_is_nowhere_to_go_back_to(tmp_path: Path) -> None:
    with pytest.raises(DivergedError, match="there is no checkpoint to go back to"):
        go_back(job(tmp_path), Engine(), LoopState(step=3))  # type: ignore[arg-type]
