"""A Ray cluster of processes on this machine, of one or several nodes, that can be killed one by one."""

import contextlib
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import psutil
import yaml

from rcdist.ports import free_ports

_START_S = 120.0
_OTHER = """
import ray
ray.init(logging_level="ERROR")
others = [n for n in ray.nodes() if n["Alive"] and "node:__internal_head__" not in n["Resources"]]
assert len(others) == 1, others
print(others[0]["NodeID"])
"""


def kill_tree(process: subprocess.Popen[str]) -> None:
    """Kill a process and all it has started."""
    try:
        family = [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]
    except psutil.NoSuchProcess:
        family = []
    for member in family:
        try:
            member.send_signal(signal.SIGKILL)
        except psutil.NoSuchProcess:
            continue
    process.wait()


class LocalCluster:
    """Start a head, and nodes on demand; everything ends with `stop`.

    Args:
        head_cpus: CPU slots of the head.
        object_store_bytes: of every node.
        environment: of Ray's processes, besides this process's own.
        python: interpreter of the nodes; None: this one.
        autoscaling: a file as cluster/local.yaml, whose nodes come when they are asked for, and go; None: add_node.

    Attributes:
        address: of the head, for drivers.
        dashboard: its URL, for jobs to be submitted to.
        metrics_ports: of each node, in the order of their start.
    """

    def __init__(
        self,
        head_cpus: int,
        object_store_bytes: int = 200_000_000,
        environment: Mapping[str, str] | None = None,
        autoscaling: Path | None = None,
        python: Path | None = None,
    ) -> None:
        # Short: Ray puts sockets below it, whose paths may have 107 bytes.
        self._folder = tempfile.TemporaryDirectory(prefix="rc", ignore_cleanup_errors=True)
        self._object_store_bytes = object_store_bytes
        self._python = str(python or sys.executable)
        token = Path(self._folder.name) / "token"
        token.write_text(secrets.token_hex(32))
        # A driver in this process may have one already, which Ray reads once.
        path = os.environ.get("RAY_AUTH_TOKEN_PATH", str(token))
        self._environment = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": path, **(environment or {})}
        self.metrics_ports: list[int] = []
        self._nodes: list[subprocess.Popen[str]] = []
        port, dashboard = free_ports(2)
        self.address, self.dashboard = f"127.0.0.1:{port}", f"http://127.0.0.1:{dashboard}"
        arguments = ["--head", f"--port={port}", f"--dashboard-port={dashboard}", f"--num-cpus={head_cpus}"]
        if autoscaling is not None:
            arguments.append(f"--autoscaling-config={self._with_address(autoscaling)}")
            # What Ray's fake provider asks for: the head's node id is the one that it reckons with.
            self._environment |= {
                "RAY_FAKE_CLUSTER": "1",
                "RAY_OVERRIDE_NODE_ID_FOR_TESTING": f"{'f' * 51}00000",
                "RAY_CLOUD_INSTANCE_ID": f"{'f' * 51}00000",
                "RAY_enable_autoscaler_v2": "1",
                "AUTOSCALER_UPDATE_INTERVAL_S": "1",
            }
        self._start([*arguments, f"--temp-dir={self._folder.name}/r"])

    @property
    def logs(self) -> Path:
        """Return the folder of what Ray's processes and the jobs have written down."""
        return Path(self._folder.name) / "r" / "session_latest" / "logs"

    @property
    def environment(self) -> Mapping[str, str]:
        """Return what a process needs to join as a driver."""
        return self._environment | {"RAY_ADDRESS": self.address}

    def add_node(self, cpus: int, environment: Mapping[str, str] | None = None) -> subprocess.Popen[str]:
        """Start one more node, with variables of its own, and return its process."""
        return self._start([f"--address={self.address}", f"--num-cpus={cpus}"], environment)

    def drain_other(self, deadline_s: int) -> None:
        """Give the one node besides the head notice, as a cloud does before it takes a spot machine away."""
        environment = {**os.environ, **self.environment}
        found = subprocess.run(
            [sys.executable, "-c", _OTHER], env=environment, capture_output=True, text=True, check=True
        )
        command = [str(Path(sys.executable).parent / "ray"), "drain-node", f"--address={self.address}"]
        command += [f"--node-id={found.stdout.split()[-1]}", "--reason=DRAIN_NODE_REASON_PREEMPTION"]
        command += ["--reason-message=taken away on purpose", f"--deadline-remaining-seconds={deadline_s}"]
        subprocess.run(command, env=environment, capture_output=True, check=True)

    def kill_node(self, node: subprocess.Popen[str]) -> None:
        """Take a node away without notice."""
        self._nodes.remove(node)
        kill_tree(node)

    def stop(self) -> None:
        """End every process and delete the folder."""
        while self._nodes:
            kill_tree(self._nodes.pop())
        for process in self.processes():  # of nodes that the autoscaler has started
            with contextlib.suppress(psutil.Error):
                process.kill()
        self._folder.cleanup()

    def processes(self, name: str = "") -> list[psutil.Process]:
        """List the processes of this cluster, by its folder in their arguments; of raylets, for one, by their name."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                arguments = process.cmdline()
                if any(f"{self._folder.name}/" in argument for argument in arguments) and name in arguments[0]:
                    found.append(process)
        return found

    def _with_address(self, autoscaling: Path) -> Path:
        """Copy the file with the address of this head."""
        settings = yaml.safe_load(autoscaling.read_text())
        settings["provider"]["gcs_address"] = self.address
        copy = Path(self._folder.name) / "autoscaling.yaml"
        copy.write_text(yaml.safe_dump(settings))
        return copy

    def _start(self, arguments: list[str], environment: Mapping[str, str] | None = None) -> subprocess.Popen[str]:
        command = [self._python, "-m", "ray.scripts.scripts", "start", "--block", "--disable-usage-stats"]
        command += ["--node-ip-address=127.0.0.1", f"--object-store-memory={self._object_store_bytes}", *arguments]
        # Both have fixed ports by default, taken if another Ray runs on this machine.
        metrics, agent = free_ports(2)
        command += [f"--metrics-export-port={metrics}", f"--dashboard-agent-listen-port={agent}"]
        self.metrics_ports.append(metrics)
        log = Path(self._folder.name) / f"node-{len(self._nodes)}-{time.time_ns()}.log"
        with log.open("w") as output:
            node = subprocess.Popen(
                command,
                stdout=output,
                stderr=output,
                text=True,
                env={**os.environ, **self._environment, **(environment or {})},
            )
        self._nodes.append(node)
        deadline = time.monotonic() + _START_S
        while "Ray runtime started" not in log.read_text():
            if node.poll() is not None or time.monotonic() > deadline:
                text = log.read_text()
                self.stop()
                raise RuntimeError(f"Ray did not start: {text[-2000:]}")
            time.sleep(0.1)
        return node
