"""Which Ray a job goes to: what is not an address, and a cluster that is gone, are one line within seconds."""

import os
import re
import socket
import subprocess
import sys
import tempfile
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

import rcdist.address
from rcdist.address import find_address
from rcdist.cluster import is_local
from rcdist.config import JobConfig
from rcdist.errors import EXIT_BAD_CONFIG, EXIT_DOES_NOT_FIT, ClusterError, RcdistError
from rcdist.ports import free_port
from tests.conftest import ROOT, RayHead


def config(address: str | None = None) -> JobConfig:
    return JobConfig(cluster={"address": address})


@pytest.mark.parametrize(
    ("address", "part"),
    [
        ("http://10.0.0.1:8265", "that is a dashboard"),
        ("https://head", "that is a dashboard"),
        ("ray://10.0.0.1:10001", "Ray Client"),
        ("s3://bucket", "not HOST:PORT"),
        ("head", "not HOST:PORT"),
        (":6379", "not HOST:PORT"),
        ("head:0", "not HOST:PORT"),
        ("head:65536", "not HOST:PORT"),
        ("head:²", "not HOST:PORT"),
    ],
)
def test_what_is_no_address_of_a_cluster(address: str, part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    for given, field in ((config(address), "cluster.address"), (config(), "RAY_ADDRESS")):
        with pytest.raises(RcdistError) as caught:
            find_address(given)
        assert caught.value.exit_code == EXIT_BAD_CONFIG
        assert str(caught.value).startswith(f'{field}="{address}": ') and part in str(caught.value)


@pytest.mark.parametrize("host", ["127.0.0.1", "nosuch.invalid", "é" * 70])
def test_nobody_is_there(host: str) -> None:
    port = free_port()
    with pytest.raises(ClusterError, match=r"nothing answers at .*\. Start the cluster") as caught:
        find_address(config(f"{host}:{port}"))
    assert caught.value.exit_code == EXIT_DOES_NOT_FIT


def test_something_else_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rcdist.address, "_ANSWER_S", 1.0)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(ClusterError, match="not the head of a Ray cluster, or does not answer within 1 s"):
            find_address(config(address))


@pytest.mark.slow
def test_a_cluster_that_is_there(ray_head: RayHead, monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_address(config(ray_head.address)) == ray_head.address
    assert not is_local(config(ray_head.address))
    monkeypatch.setenv("RAY_ADDRESS", ray_head.address)
    assert find_address(config()) == find_address(config("auto")) == ray_head.address
    assert find_address(config("local")) is None and is_local(config("local"))
    monkeypatch.setenv("RAY_ADDRESS", "")
    assert find_address(config()) is None and is_local(config())


@pytest.mark.parametrize("variable", ["RAY_TMPDIR", "TMPDIR"])
def test_a_temporary_folder_too_deep_for_sockets(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    folder = "/tmp/" + "ä" * 30
    monkeypatch.setenv(variable, folder)
    with pytest.raises(RcdistError, match=r"107 bytes: \d\d for this folder.*RAY_TMPDIR=/tmp") as caught:
        find_address(config())
    assert caught.value.field == variable and caught.value.exit_code == EXIT_BAD_CONFIG
    most = int(str(caught.value).split("107 bytes: ")[1].split()[0])
    for length, fits in ((most, True), (most + 1, False)):
        monkeypatch.setenv(variable, "/tmp/" + "x" * (length - len("/tmp/")))
        with nullcontext() if fits else pytest.raises(RcdistError):
            assert find_address(config()) is None


def test_a_ray_that_cannot_start_is_one_line() -> None:
    # In a process of its own: this one may be connected to a Ray already.
    imports = "from rcdist import cluster, config, exits\n"
    code = imports + "exits.run_job(lambda _: cluster.ray_session(config.JobConfig()).__enter__())"
    with tempfile.NamedTemporaryFile() as file:  # no folder
        environment = {**os.environ, "RAY_TMPDIR": file.name, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=200
        )
    assert done.returncode == EXIT_DOES_NOT_FIT and "Traceback" not in done.stderr
    assert re.search(r"Ray cannot be started: .*Not a directory", done.stderr)


def test_ray_is_asked_for_the_path_of_its_sockets(tmp_path: Path) -> None:
    """The limit that is checked is the one of Ray's own check."""
    from ray._private.utils import validate_socket_filepath

    fits: Any = "/" + "x" * (rcdist.address._MAX_SOCKET_BYTES - 1)
    validate_socket_filepath(fits)
    with pytest.raises(OSError, match="cannot exceed"):
        validate_socket_filepath(fits + "x")
