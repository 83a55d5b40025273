"""The arms of a study: what each changes, what it is compared with, and what is refused."""

from pathlib import Path

import pytest

from rcdist.config.cli import config_from_dict, read_yaml
from rcdist.errors import ConfigError
from rcdist.model.specs import frozen_specs
from rcdist.study.driver import plan_runs
from rcdist.study.settings import StudyConfig
from tests.conftest import ROOT
from tests.study.small import ARMS, small_study


def test_arms_have_a_baseline_and_seeds(tmp_path: Path) -> None:
    config = small_study(tmp_path, {**ARMS, "T": {"seeds": 3}}, seeds=2)
    assert [config.baseline_of(arm) for arm in ARMS] == ["T", "T", "U"]
    assert [config.seeds_of(arm) for arm in ARMS] == [3, 2, 2]
    run = config.run_config("narrow", 2)
    assert (run.name, run.seed, run.data.seed, run.model.glu_width) == ("s-narrow-2", 2, 2, 32)
    assert run.cluster.num_workers == 1


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"study": {"only": ["X"]}}, 'study.only="X": no such arm; there are T, U, narrow. Name one.'),
        ({"arms": {"T": {"baseline": "X"}}}, 'arms.T.baseline="X": no such arm'),
        ({"arms": {"a b": {}}}, "arms"),
        ({"arms": {"T": {"steps": 3}}}, "arms.T.steps"),
        ({"study": {"texts": {"blimp": "x"}}}, "study.texts"),
        ({"study": {"gpus_per_run": 2}}, "study.gpus_per_run=2"),
    ],
)
def test_what_no_study_can_be_is_refused(tmp_path: Path, change: dict[str, object], text: str) -> None:
    tree = small_study(tmp_path).model_dump(mode="json") | change
    with pytest.raises(ConfigError) as caught:
        config_from_dict(tree, StudyConfig)
    assert text in str(caught.value)


def test_an_arm_that_is_no_run_is_named(tmp_path: Path) -> None:
    config = small_study(tmp_path, {"T": {}, "x": {"settings": {"reservoir.plan": "Q"}}})
    with pytest.raises(ConfigError, match=r"arms\.x: reservoir\.plan"):
        plan_runs(config)


@pytest.mark.parametrize("path", sorted((ROOT / "jobs/configs/paper").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_study_that_ships_can_be_run(path: Path) -> None:
    config = config_from_dict(read_yaml(str(path)), StudyConfig)
    assert config.name == path.stem
    runs = plan_runs(config)
    for run in runs:
        frozen_specs(run.config.architecture)
    names = [run.config.name for run in runs]
    assert len(set(names)) == len(names) >= 6
