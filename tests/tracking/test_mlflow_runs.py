"""Runs are read back from MLflow as they were written, searches with their trials; ended runs take more values."""

from pathlib import Path

import pytest
from mlflow import MlflowClient

from rcdist.tracking.mlflow import check_server, start_or_continue
from rcdist.tracking.mlflow_runs import (
    STUDY,
    SWEEP,
    describe_run,
    find_runs,
    find_study,
    list_names,
    log_values,
    set_tags,
    terminate,
)


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return a store with two runs of one name, a search with two trials, and a run in another experiment."""
    uri = f"sqlite:///{tmp_path_factory.mktemp('store')}/mlflow.db"
    check_server(uri, "test", 10.0)
    check_server(uri, "other", 10.0)

    def record(name: str, experiment: str = "test", **tags: str) -> str:
        config = {"name": name, "reservoir": {"plan": "c"}}
        tracker = start_or_continue(
            uri, experiment, name, None, config=config, facts={"cost": {"x": 1}}, tags=tags, timeout_s=10.0
        )
        for step in (1, 2):
            tracker.log(step, {"eval/bits_per_byte": 3.0 - step, "train/tokens": 10.0 * step}, step)
        tracker.finish("FINISHED", 30.0)
        return tracker.run_id

    record("a")
    record("a")
    record("a", experiment="other")
    parent = record("search", kind=SWEEP)
    for number in (10, 9):
        record(f"search-{number}", **{"mlflow.parentRunId": parent, "sweep/trial": str(number)})
    study = record("study", kind=STUDY)
    for arm in "ab":
        record(f"study-{arm}", **{"mlflow.parentRunId": study, "study/arm": arm})
    return uri


def test_names_are_of_runs_and_searches_not_of_trials(uri: str) -> None:
    assert list_names(uri, "test") == ["study", "search", "a"]
    assert list_names(uri, "nowhere") == []


def test_runs_of_a_name(uri: str) -> None:
    runs = find_runs(uri, "test", "a", ["eval/bits_per_byte", "perf/mfu"])
    assert len(runs) == 2
    run = runs[0]
    assert (run.name, run.status, run.params["cost.x"]) == ("a", "FINISHED", "1")
    assert run.metrics == {"eval/bits_per_byte": 1.0, "train/tokens": 20.0}
    assert run.histories == {"eval/bits_per_byte": [(1, 2.0), (2, 1.0)]}
    assert find_runs(uri, "test", "b", []) == []


def test_a_search_is_its_trials_in_order(uri: str) -> None:
    assert [run.name for run in find_runs(uri, "test", "search", [])] == ["search-9", "search-10"]


def test_a_study_is_its_runs_in_the_order_of_their_start(uri: str) -> None:
    assert [run.name for run in find_runs(uri, "test", "study", [])] == ["study-a", "study-b"]
    found = find_study(uri, "test", "study", ["eval/bits_per_byte"])
    assert found is not None
    parent, runs = found
    assert (parent.name, [run.tags["study/arm"] for run in runs]) == ("study", ["a", "b"])
    assert runs[0].histories == {"eval/bits_per_byte": [(1, 2.0), (2, 1.0)]}
    set_tags(uri, parent.run_id, {"time/cpu": "x"})
    assert find_study(uri, "test", "study", [])[0].tags["time/cpu"] == "x"  # type: ignore[index]
    assert find_study(uri, "test", "search", []) is None


def test_ended_runs_take_values_and_a_status(uri: str, caplog: pytest.LogCaptureFixture) -> None:
    run_id = find_runs(uri, "test", "search", [])[0].run_id
    log_values(uri, {run_id: {"sweep/aucc": 1.5}}, step=2)
    terminate(uri, run_id, "KILLED")
    describe_run(uri, run_id, "the *front*")
    run = MlflowClient(uri).get_run(run_id)
    assert (run.data.metrics["sweep/aucc"], run.info.status) == (1.5, "KILLED")
    assert run.data.tags["mlflow.note.content"] == "the *front*"
    assert caplog.text == ""


def test_what_a_store_does_not_take_is_said_and_raises_nothing(uri: str, caplog: pytest.LogCaptureFixture) -> None:
    log_values(uri, {"none": {"sweep/aucc": 1.5}}, step=2)
    terminate(uri, "none", "KILLED")
    assert "were not stored" in caplog.text
    assert "keeps its status" in caplog.text
    assert Path(uri.removeprefix("sqlite:///")).exists()
