"""The same name is the same search, or refused."""

import json
from pathlib import Path

import pytest

from rcdist.config.cli import config_from_dict
from rcdist.errors import ConfigError
from rcdist.sweep.folder import SweepFolder
from rcdist.sweep.settings import SweepConfig
from tests.sweep.small import GRID, small_sweep


def written(storage: Path) -> SweepFolder:
    folder = SweepFolder(small_sweep(storage))
    folder.path.mkdir(parents=True)
    folder.write(mlflow_run_id="x")
    return folder


def test_what_was_added_stays(tmp_path: Path) -> None:
    folder = written(tmp_path)
    folder.write(reference={"train": 1})
    folder.check()
    assert (folder.read("mlflow_run_id"), folder.read("reference"), folder.read("else")) == ("x", {"train": 1}, None)


def test_more_trials_and_another_place_are_the_same_search(tmp_path: Path) -> None:
    written(tmp_path)
    config = small_sweep(tmp_path, trials=99, concurrency=1, budget_usd=3.0)
    tree = config.model_dump(mode="json")
    tree["cluster"]["num_workers"], tree["tracking"]["timeout_s"], tree["cost"]["budget_usd"] = 2, 5.0, 1.0
    SweepFolder(config_from_dict(tree, SweepConfig)).check()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (lambda path: small_sweep(path, GRID), r"space\.reservoir.*: the search 's' in .* has"),
        (lambda path: small_sweep(path, sampler="random"), 'sweep.sampler="random": the search'),
        (lambda path: small_sweep(path, objectives=["eval/loss_nats"]), "sweep.objectives"),
    ],
)
def test_another_search_is_refused(tmp_path: Path, config: object, message: str) -> None:
    written(tmp_path)
    assert callable(config)
    with pytest.raises(ConfigError, match=message):
        SweepFolder(config(tmp_path)).check()


def test_another_model_is_refused(tmp_path: Path) -> None:
    written(tmp_path)
    tree = small_sweep(tmp_path).model_dump(mode="json")
    tree["model"]["width"] = 64
    with pytest.raises(ConfigError, match=r"model\.width=64: the search 's' in .* has 32"):
        SweepFolder(config_from_dict(tree, SweepConfig)).check()


def test_another_format_is_refused(tmp_path: Path) -> None:
    folder = written(tmp_path)
    path = folder.path / "sweep.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 0}))
    with pytest.raises(ConfigError, match="is of format 0, this rcdist writes 1"):
        folder.check()


def test_trials_without_a_search_are_refused(tmp_path: Path) -> None:
    folder = SweepFolder(small_sweep(tmp_path))
    folder.path.mkdir(parents=True)
    folder.journal.touch()
    with pytest.raises(ConfigError, match=r"has trials and no sweep.json"):
        folder.check()
