"""A search from its settings to its front, on a real Ray with real Tune: paired, recorded, resumed, bounded."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from rcdist.config.cli import config_from_dict
from rcdist.errors import BudgetError, ClusterError, ConfigError, RetriesError
from rcdist.exits import run_main
from rcdist.launch import run
from rcdist.sweep.driver import launch_sweep, sweep
from rcdist.sweep.folder import SweepFolder
from rcdist.sweep.proposals import resolve
from rcdist.sweep.settings import SweepConfig
from rcdist.sweep.trials import Trial
from tests.conftest import ROOT, RayHead
from tests.jobs.run import small_config
from tests.waiting import wait_for

GRID: dict[str, Any] = {"reservoir": {"plan": {"letters": ["c", "G"], "pattern": ["x", "T x"]}}}
OBJECTIVES = ["eval/bits_per_byte", "model/train_flops"]


def settings(storage: Path, space: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    """Return the settings of a search whose trials take a second each."""
    tree = small_config(storage, "--evaluate.yardsticks=false", "--train.global_batch_tokens=1024").model_dump(
        mode="json"
    )
    tree["evaluate"]["every_steps"], tree["checkpoint"]["every_steps"] = 2, None
    tree["cluster"]["num_workers"] = 1
    options = {"trials": None, "sampler": "grid", "concurrency": 1, "objectives": OBJECTIVES, "stop_dominated": False}
    tree |= {"name": "grid", "space": space or GRID, "sweep": {**options, **more.pop("sweep", {})}}
    for key, value in more.items():
        section, _, name = key.partition("__")
        if name:
            tree[section][name] = value
        else:
            tree[section] = value
    return tree


def search(storage: Path, space: dict[str, Any] | None = None, **more: Any) -> SweepConfig:
    return config_from_dict(settings(storage, space, **more), SweepConfig)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory, ray_cpu: None) -> tuple[SweepConfig, list[Trial]]:
    """Search a grid of four plans to the end, with two seeds of its front."""
    config = search(tmp_path_factory.mktemp("sweep"), sweep={"front_seeds": 1})
    seen: list[Trial] = []
    result = sweep(config, seen.append)
    assert sorted(trial.number for trial in seen) == [trial.number for trial in result.trials]
    return config, list(result.trials)


def comparable(trials: list[Trial]) -> list[tuple[Any, ...]]:
    """Return what must be equal between two searches of the same trials."""
    return [(t.number, t.plan, t.status, t.qualities, t.costs, t.curve) for t in trials if t.repeats is None]


@pytest.mark.slow
def test_baseline_grid_and_repeats_are_trained_and_paired(unbroken: tuple[SweepConfig, list[Trial]]) -> None:
    config, trials = unbroken
    assert [trial.plan for trial in trials[:5]] == ["T", "c", "T c", "G", "T G"]
    assert {trial.status for trial in trials} == {"finished"}
    again = trials[5:]
    assert again and {trial.seed for trial in again} == {1} and again[0].repeats == 0
    for trial in trials:
        assert [tokens for tokens, _ in trial.curve] == [2048.0, 4096.0, 6144.0, 8192.0, 10240.0]
        assert trial.curve[-1][1] == trial.qualities["eval/bits_per_byte"]
    folder = SweepFolder(config).path
    names = {path.name for path in folder.iterdir()}
    assert names == {"sweep.json", "trials.jsonl", "trials.csv", "front.csv", "front.png", "report.html"}


@pytest.mark.slow
def test_mlflow_has_a_parent_with_its_children(unbroken: tuple[SweepConfig, list[Trial]], tmp_path: Path) -> None:
    config, trials = unbroken
    client = MlflowClient(config.tracking_uri)
    experiment = client.get_experiment_by_name(config.tracking.experiment)
    runs = client.search_runs([experiment.experiment_id])
    (parent,) = [run for run in runs if run.data.tags.get("kind") == "sweep"]
    children = {run.info.run_name: run for run in runs if run is not parent}
    assert parent.info.run_name == "grid"
    assert {run.info.status for run in runs} == {"FINISHED"}
    assert set(children) == {f"grid-{trial.number:03d}" for trial in trials}
    artifacts = {file.path for file in client.list_artifacts(parent.info.run_id)}
    assert artifacts >= {"front.csv", "trials.csv", "front.png", "report.html", "config.yaml"}
    volumes = client.get_metric_history(parent.info.run_id, "sweep/hypervolume")
    assert len(volumes) > 1
    for trial in trials:
        run = children[f"grid-{trial.number:03d}"]
        assert run.info.run_id == trial.mlflow_run_id
        assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert run.data.params["reservoir.plan"] == trial.plan
        assert run.data.metrics["sweep/objective/model/train_flops"] == trial.costs["model/train_flops"]
        assert run.data.metrics["sweep/objective/eval/bits_per_byte"] == trial.qualities["eval/bits_per_byte"]
        assert run.data.params["cost.flops_per_token.train"] == f"{trial.costs['model/train_flops']:.0f}"
        assert run.data.metrics["sweep/aucc"] > 0


@pytest.mark.slow
def test_a_trial_is_the_run_it_would_be_alone(unbroken: tuple[SweepConfig, list[Trial]], ray_cpu: None) -> None:
    """What a process has trained before leaves no trace: a trial's losses are those of a worker of its own."""
    config, trials = unbroken
    alone = resolve(config, trials[3]).model_copy(update={"name": "alone"})
    result = run(alone)
    assert result.metrics["eval/bits_per_byte"] == trials[3].qualities["eval/bits_per_byte"]


@pytest.mark.slow
def test_the_same_command_again_trains_nothing(unbroken: tuple[SweepConfig, list[Trial]]) -> None:
    config, trials = unbroken
    assert list(sweep(config).trials) == trials
    with pytest.raises(ConfigError, match=r"the search 'grid' in .* has"):
        sweep(search(config.storage, {"reservoir.plan": ["c"]}, sweep={"front_seeds": 1}))


@pytest.mark.slow
def test_killed_and_started_again_it_ends_as_if_unbroken(
    unbroken: tuple[SweepConfig, list[Trial]], tmp_path: Path, ray_head: RayHead
) -> None:
    tree = settings(tmp_path)
    file = tmp_path / "grid.yaml"
    file.write_text(json.dumps(tree))
    command = [sys.executable, str(ROOT / "jobs" / "sweep.py"), "--config", str(file)]
    environment = os.environ | {"RAY_ADDRESS": ray_head.address}
    journal = tmp_path / "sweeps" / "grid" / "trials.jsonl"
    first = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    wait_for(lambda: journal.exists() and journal.read_text().count('"finished"') >= 2, first, every_s=0.1)
    first.send_signal(signal.SIGKILL)
    first.wait()
    finished_before = {json.loads(line)["number"] for line in journal.read_text().splitlines() if '"finished"' in line}
    lines = len(journal.read_text().splitlines())

    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"going on: {len(finished_before)} of" in done.stdout
    later = [json.loads(line)["number"] for line in journal.read_text().splitlines()[lines:]]
    assert not finished_before & set(later)
    trials = list(sweep(config_from_dict(tree, SweepConfig)).trials)
    assert comparable(trials) == comparable(unbroken[1])


@pytest.mark.slow
def test_a_budget_of_the_whole_search_ends_it(tmp_path: Path, ray_cpu: None) -> None:
    with pytest.raises(BudgetError, match=r"sweep.budget_device_s=0.01: used up by 1 trials"):
        sweep(search(tmp_path, sweep={"budget_device_s": 0.01}))
    rows = (tmp_path / "sweeps" / "grid" / "trials.csv").read_text().splitlines()
    assert len(rows) == 2
    assert ",paused," in rows[1]


@pytest.mark.slow
def test_a_failed_trial_is_recorded_and_stops_no_other(tmp_path: Path, ray_cpu: None) -> None:
    rows = [str(write_rows(tmp_path))]
    space = {"data.text_column": ["nothing", "text"], "reservoir.plan": ["c"]}
    result = sweep(search(tmp_path, space, data__train=rows, data__validation=rows))
    assert [trial.status for trial in result.trials] == ["finished", "failed", "finished"]
    assert "data.text_column" in result.trials[1].reason
    assert result.front


def write_rows(folder: Path) -> Path:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps({"text": "the quick brown fox " * 20}) + "\n" for _ in range(80)))
    return path


@pytest.mark.slow
def test_nothing_fits_is_said_at_once(tmp_path: Path, ray_cpu: None, capsys: pytest.CaptureFixture[str]) -> None:
    config = search(tmp_path, cluster__num_workers=64, cluster__use_gpu=True)
    with pytest.raises(ClusterError, match="a trial needs 64 GPUs, the cluster has or can grow to 0"):
        sweep(config)
    assert run_main(lambda _: launch_sweep(config), []) == 3
    assert "cluster.num_workers=64: no trial fits" in capsys.readouterr().err


@pytest.mark.exhaustive
def test_runs_of_two_workers_on_two_cpus_do_not_wait_for_one_another(tmp_path: Path) -> None:
    file = tmp_path / "grid.yaml"
    space = {"reservoir.plan": ["c", "G", "o", "U", "cG"]}
    file.write_text(json.dumps(settings(tmp_path, space, cluster__num_workers=2, sweep={"concurrency": None})))
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    command = [sys.executable, str(ROOT / "jobs" / "sweep.py"), "--config", str(file)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "6 trials: 6 finished" in done.stdout


@pytest.mark.slow
def test_no_trial_that_finishes_is_no_success(tmp_path: Path, ray_cpu: None) -> None:
    with pytest.raises(RetriesError, match=r"not one trial has finished; the first: train.max_wall_s=0.001"):
        sweep(search(tmp_path, {"reservoir.plan": ["c"]}, train__max_wall_s=0.001))
