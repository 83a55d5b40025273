"""The files of Ray's cluster launcher are what Ray accepts, cost nothing when idle, and open nothing to others."""

import re
import tomllib

import pytest
import yaml
from packaging.requirements import Requirement
from ray.autoscaler._private.util import prepare_config, validate_config

from tests.conftest import ROOT

FILES = ["aws.yaml", "gcp.yaml"]
SECRET = re.compile(r"AKIA|aws_secret|private_key_id|BEGIN [A-Z ]*PRIVATE KEY|password", re.I)


@pytest.fixture(params=FILES)
def config(request: pytest.FixtureRequest) -> dict:
    found: dict = yaml.safe_load((ROOT / "cluster" / request.param).read_text())
    return found


def test_ray_accepts_it(config: dict) -> None:
    validate_config(prepare_config(config))


def test_nothing_is_paid_for_when_idle(config: dict) -> None:
    assert config["idle_timeout_minutes"] <= 15
    workers = {name: kind for name, kind in config["available_node_types"].items() if name != config["head_node_type"]}
    assert all(kind["min_workers"] == 0 and kind["max_workers"] > 0 for kind in workers.values())
    markets = {kind["labels"]["market-type"] for kind in workers.values()}
    assert markets == {"spot", "on-demand"}
    for kind in config["available_node_types"].values():
        text = str(kind["node_config"]).lower()
        assert ("spot" in text) == (kind["labels"]["market-type"] == "spot")
    head = config["available_node_types"][config["head_node_type"]]
    assert head["labels"]["market-type"] == "on-demand" and head["resources"] == {"CPU": 0}
    # Spot first, on demand where there is none.
    priority = {kind["labels"]["market-type"]: kind["priority"] for kind in workers.values()}
    assert priority["spot"] > priority["on-demand"]


def test_nothing_is_open_and_no_secret_is_in_it(config: dict) -> None:
    text = yaml.safe_dump(config)
    assert not SECRET.search(text) and "0.0.0.0" not in text and "security_group" not in config["provider"]
    starts = [command for command in config["head_start_ray_commands"] if "ray start --head" in command]
    assert len(starts) == 1 and "--dashboard-host=127.0.0.1" in starts[0] and "--autoscaling-config" in starts[0]
    assert "RAY_AUTH_MODE=token" in text and "auth_token" in str(config["file_mounts"])


def test_nodes_get_the_versions_of_pyproject(config: dict) -> None:
    wanted = {
        each.name: each.specifier
        for each in map(Requirement, tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"])
    }
    (install,) = [command for command in config["setup_commands"] if "pip install" in command]
    installed = [Requirement(text) for text in re.findall(r"'([^']+)'", install)]
    assert {each.name for each in installed} == wanted.keys()
    for each in installed:
        assert each.specifier == wanted[each.name], each.name
