"""Artifacts of a storage folder that has moved are where the folder is now; what could not be stored is said."""

import shutil
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest
from mlflow import MlflowClient

from rcdist.tracking.mlflow import MlflowTracker, check_server, start_or_continue


def start(storage: Path, run_id: str | None = None, experiment: str = "test") -> MlflowTracker:
    uri = f"sqlite:///{storage}/mlflow.db"
    check_server(uri, experiment, 10.0)
    return start_or_continue(uri, experiment, "tiny", run_id, config={}, facts={}, tags={}, timeout_s=10.0)


def store(tracker: MlflowTracker, folder: Path, name: str) -> bool:
    file = folder / name
    file.write_text(name)
    return tracker.log_artifact(file)


def run_once(storage: Path, experiment: str, folder: Path, name: str) -> str:
    tracker = start(storage, experiment=experiment)
    assert store(tracker, folder, name)
    assert tracker.finish("FINISHED", 30)
    return tracker.run_id


def files_under(folder: Path) -> set[str]:
    return {file.name for file in folder.rglob("*.txt")}


@pytest.fixture
def old(tmp_path: Path, mlflow_db: Path) -> Path:
    """Storage with characters that SQL patterns and URIs read otherwise."""
    folder = tmp_path / "old [a]*_#ü"
    folder.mkdir()
    shutil.copy(mlflow_db, folder)
    return folder


def test_a_run_that_goes_on_in_a_moved_folder_stores_there(old: Path, tmp_path: Path) -> None:
    # In another process, as it is for a user: MLflow keeps addresses of runs for as long as one lives.
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        first = pool.submit(run_once, old, "test", tmp_path, "before.txt").result()
        other = pool.submit(run_once, old, "another", tmp_path, "other.txt").result()
    new = tmp_path / "new"
    shutil.copytree(old, new)  # the old one can still be written, and must not be
    tracker = start(new, first)
    assert store(tracker, tmp_path, "after.txt")
    assert tracker.finish("FINISHED", 30)
    assert files_under(new) == {"before.txt", "other.txt", "after.txt"}
    assert files_under(old) == {"before.txt", "other.txt"}
    client = MlflowClient(f"sqlite:///{new}/mlflow.db")
    # What lies in the same folder has moved too, whichever experiment it belongs to.
    for run_id, name in ((first, "before.txt"), (first, "after.txt"), (other, "other.txt")):
        assert Path(client.download_artifacts(run_id, name, str(tmp_path))).read_text() == name
    assert client.get_experiment_by_name("another").artifact_location == (new / "mlartifacts").as_uri()


def test_a_place_that_the_owner_of_an_experiment_chose_stays(old: Path, tmp_path: Path) -> None:
    uri, chosen = f"sqlite:///{old}/mlflow.db", tmp_path / "chosen" / "mlartifacts"
    check_server(uri, "another", 10.0)
    MlflowClient(uri).create_experiment("test", artifact_location=chosen.as_uri())
    assert store(start(old), tmp_path, "a.txt")
    assert files_under(chosen) == {"a.txt"}


def test_what_could_not_be_stored_is_said_and_the_end_of_the_run_knows(
    old: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tracker = start(old)
    shutil.rmtree(old / "mlartifacts")
    (old / "mlartifacts").write_text("no folder")
    assert not store(tracker, tmp_path, "a.txt")
    assert "a.txt was not stored" in caplog.text
    assert not tracker.finish("FINISHED", 30)


def test_a_file_stored_at_the_second_try_is_stored(old: Path, tmp_path: Path) -> None:
    tracker = start(old)
    assert not tracker.log_artifact(tmp_path / "b.txt")
    assert store(tracker, tmp_path, "b.txt")
    assert tracker.finish("FINISHED", 30)
