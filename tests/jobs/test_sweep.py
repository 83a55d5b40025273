"""The job that searches: what is wrong is said in one line, exit code 2, before Ray; its presets are sound."""

import json
from pathlib import Path

import pytest

from rcdist.config.cli import parse_cli
from rcdist.sweep.proposals import find_valid, resolve
from rcdist.sweep.settings import SweepConfig
from rcdist.sweep.space import first_combinations, read_space
from rcdist.sweep.trials import Trial
from tests.conftest import ROOT
from tests.jobs.run import run_in_process

PRESETS = ROOT / "jobs" / "configs" / "sweeps"


@pytest.mark.parametrize("preset", sorted(path.stem for path in PRESETS.glob("*.yaml")))
def test_presets_are_sound(preset: str) -> None:
    config = parse_cli(SweepConfig, ["--config", preset], prog="test", presets=PRESETS)
    space = read_space(config.space)
    find_valid(config, space, list(first_combinations(space, 100)))
    trial = resolve(config, Trial(0, "T"))
    assert trial.train.steps * trial.train.global_batch_tokens >= 150_000
    assert config.sweep.trials is not None and config.sweep.trials >= 12


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--space={reservoir.plam: [c]}"], ["reservoir.plam", "The nearest one is reservoir.plan"]),
        (["--space={reservoir.plan: []}"], ["space.reservoir.plan=[]", "nothing to choose from"]),
        (["--space={reservoir.connectivity: {low: 1.0, high: 0.1}}"], ["reversed"]),
        (["--space={reservoir.plan: [c, xyz]}"], ['space.reservoir.plan="xyz"', "unknown matrix letter 'x'"]),
        (["--sweep.objectives=[eval/bits]"], ["sweep.objectives", "no trial records it"]),
        (["--sweep.objectives=[eval/bits_per_byte, time/train_s]"], ["Set sweep.cost_from=benchmark"]),
        (["--sweep.sampler=grid"], ["space.reservoir.input_scaling", "a grid needs a step"]),
        (["--sweep.trails=3"], ["sweep.trails", "The nearest one is sweep.trials"]),
        (["--sweep.trials=0"], ["sweep.trials=0"]),
        (["--sweep.gpus_per_trial=2"], ["sweep.gpus_per_trial=2"]),
        (["--train.step=3"], ["train.steps"]),
        (["--config=nowhere"], ['config="nowhere"', "tiny"]),
        (["--name=a/b"], ["name="]),
        (["--storage_path=/proc/no"], ["storage_path=", "cannot be written"]),
    ],
    ids=lambda value: value[0][:50] if value[0].startswith("--") else "",
)
def test_bad_input_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], expected: list[str]
) -> None:
    given = (
        arguments if any("storage_path" in text for text in arguments) else [f"--storage_path={tmp_path}", *arguments]
    )
    assert run_in_process("sweep.py", given) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1, err
    for part in expected:
        assert part in err
    assert not (tmp_path / "sweeps").exists()


def test_a_folder_of_another_version_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "sweeps" / "sweep"
    folder.mkdir(parents=True)
    (folder / "sweep.json").write_text(json.dumps({"format": 99}))
    assert run_in_process("sweep.py", [f"--storage_path={tmp_path}"]) == 2
    err = capsys.readouterr().err
    assert "is of format 99, this rcdist writes 1" in err
    assert err.count("\n") == 1
