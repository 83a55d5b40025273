"""Every member of the reservoir family under ZeRO 2 on two Ray Train workers, in one fit."""

import json
import math
from pathlib import Path

import pytest

from rcdist.workers import Workers, worker_environment
from tests.conftest import ROOT
from tests.train.family_worker import family_loop, list_family

pytestmark = pytest.mark.slow

STEPS = 10


@pytest.fixture(scope="module")
def outcomes(ray_cpu: None, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict]:
    import ray.train
    from ray.train.torch import TorchConfig, TorchTrainer

    folder = tmp_path_factory.mktemp("family")
    environment = worker_environment(Workers(2, False, 1.0)) | {"PYTHONPATH": str(ROOT)}
    TorchTrainer(
        family_loop,
        train_loop_config={"steps": STEPS, "result": str(folder / "result.json")},
        torch_config=TorchConfig(backend="gloo"),
        scaling_config=ray.train.ScalingConfig(num_workers=2, resources_per_worker={"CPU": 1}),
        run_config=ray.train.RunConfig(
            name="family", storage_path=str(folder), worker_runtime_env={"env_vars": environment}
        ),
    ).fit()
    found: dict[str, dict] = json.loads(Path(folder / "result.json").read_text())
    return found


def test_the_family_is_complete() -> None:
    # Five placements with the gate's two choices, four topologies, three output gates; W_g only with a full gate.
    assert len(list_family()) == 4 * (5 * 3 + 1) + 5


def test_every_member_trains(outcomes: dict[str, dict]) -> None:
    assert outcomes.keys() == list_family().keys()
    for name, outcome in outcomes.items():
        losses = outcome["losses"]
        assert len(losses) == STEPS and all(math.isfinite(loss) for loss in losses), name
        assert min(losses[-3:]) < losses[0] - 0.005, (name, losses)
    # They are different models: no two begin or end with the same losses.
    assert len({tuple(outcome["losses"]) for outcome in outcomes.values()}) == len(outcomes)


def test_no_member_sends_a_frozen_byte(outcomes: dict[str, dict]) -> None:
    for outcome in outcomes.values():
        assert {sent["frozen"] for sent in outcome["sent"]} == {0}
        assert all(sent["trained"] > 0 for sent in outcome["sent"])
