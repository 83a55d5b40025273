"""Boards and alerts: names are those of rcdist, rules do what they say, and every panel has data of a real run."""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from rcdist.chaos.local_cluster import LocalCluster
from rcdist.ports import free_port
from rcdist.tracking.gauges import gauge_name
from rcdist.tracking.metrics import METRICS
from tests.conftest import ROOT
from tests.jobs.run import list_workers, small_arguments
from tests.waiting import wait_for

FOLDER = ROOT / "dashboards"
BOARDS = sorted((FOLDER / "grafana").glob("*.json"))
_OURS = re.compile(r"ray_(rcdist_[a-z_]+)")

needs_prometheus = pytest.mark.skipif(shutil.which("promtool") is None, reason="needs Debian's package prometheus")


def queries() -> list[tuple[str, str, str]]:
    """List (board, panel, query) of every target."""
    boards = [(path.stem, json.loads(path.read_text())) for path in BOARDS]
    return [(name, p["title"], t["expr"]) for name, board in boards for p in board["panels"] for t in p["targets"]]


def test_every_name_is_that_of_a_metric() -> None:
    known = {gauge_name(metric) for metric in METRICS}
    texts = [path.read_text() for path in (*BOARDS, FOLDER / "alerts.yml")]
    assert len(BOARDS) == 3
    for text in texts:
        used = set(_OURS.findall(text))
        assert used and used <= known


def test_every_metric_of_a_run_and_of_a_search_is_on_a_board() -> None:
    shown = set(_OURS.findall("".join(path.read_text() for path in BOARDS)))
    # Left to MLflow: what is not followed while a run lasts, or says in other units what a board has.
    left = {"train_loss_nats", "train_tokens", "train_epoch", "eval_loss_nats", "eval_perplexity", "sweep_aucc"}
    left |= {"cost_budget_device_s", "cost_trained_flops", "cost_hardware_flops"}
    left |= {f"yardstick_{name}_bits_per_byte" for name in ("gzip", "unigram", "bigram")}
    missing = {gauge_name(metric) for metric in METRICS} - shown
    assert missing <= {f"rcdist_{name}" for name in left}


def test_panels_lie_side_by_side() -> None:
    for path in BOARDS:
        taken: set[tuple[int, int]] = set()
        for panel in json.loads(path.read_text())["panels"]:
            place = panel["gridPos"]
            cells = {(place["x"] + i, place["y"] + j) for i in range(place["w"]) for j in range(place["h"])}
            assert not cells & taken and place["x"] + place["w"] <= 24, (path.stem, panel["title"])
            taken |= cells


@needs_prometheus
def test_prometheus_accepts_configuration_and_rules() -> None:
    for command in ("check config prometheus.yml", "check rules alerts.yml", "test rules alerts_test.yml"):
        done = subprocess.run(["promtool", *command.split()], cwd=FOLDER, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


@needs_prometheus
def test_every_alert_has_a_test() -> None:
    rules = yaml.safe_load((FOLDER / "alerts.yml").read_text())["groups"][0]["rules"]
    tests = yaml.safe_load((FOLDER / "alerts_test.yml").read_text())["tests"]
    fired = {case["alertname"] for test in tests for case in test["alert_rule_test"] if case.get("exp_alerts")}
    assert fired == {rule["alert"] for rule in rules}


class Prometheus:
    """Ask a Prometheus."""

    def __init__(self, url: str) -> None:
        self._url = url

    def ask(self, path: str, **parameters: str) -> Any:
        query = urllib.parse.urlencode(parameters)
        with urllib.request.urlopen(f"{self._url}/api/v1/{path}?{query}", timeout=10) as answer:
            return json.load(answer)["data"]

    def is_up(self) -> bool:
        with contextlib.suppress(OSError):
            return bool(self.ask("status/buildinfo"))
        return False

    def newest(self, query: str, since: float) -> str | None:
        """Return the last value that a query had at any second since then."""
        found = self.ask("query_range", query=query, start=str(since), end=str(time.time()), step="1")
        values = [value for series in found["result"] for _, value in series["values"] if value != "NaN"]
        return values[-1] if values else None

    def is_stalled(self, run: str) -> bool:
        """Say whether the alert that a run stands still fires."""
        labels = [alert["labels"] for alert in self.ask("alerts")["alerts"] if alert["state"] == "firing"]
        return any(each["alertname"] == "RunStalled" and each.get("run") == run for each in labels)


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    cluster = LocalCluster(4, environment={"RAY_metrics_report_interval_ms": "500"})  # not every 10 s
    try:
        yield cluster
    finally:
        cluster.stop()


@pytest.fixture
def prometheus(cluster: LocalCluster, tmp_path: Path) -> Iterator[Prometheus]:
    """Start a Prometheus on our configuration and rules, which asks every second and calls 8 s a stall."""
    config = yaml.safe_load((FOLDER / "prometheus.yml").read_text())
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    (job,) = config["scrape_configs"]
    del job["file_sd_configs"]
    job["static_configs"] = [{"targets": [f"127.0.0.1:{cluster.metrics_ports[0]}"]}]
    (tmp_path / "prometheus.yml").write_text(yaml.safe_dump(config))
    rules = (FOLDER / "alerts.yml").read_text()
    assert rules.count("> 900") == 1
    (tmp_path / "alerts.yml").write_text(rules.replace("> 900", "> 8"))
    port = free_port()
    command = ["prometheus", f"--config.file={tmp_path}/prometheus.yml", f"--storage.tsdb.path={tmp_path}/data"]
    command += [f"--web.listen-address=127.0.0.1:{port}", "--log.level=warn"]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    asked = Prometheus(f"http://127.0.0.1:{port}")
    try:
        wait_for(asked.is_up)
        yield asked
    finally:
        server.terminate()
        server.wait()


@pytest.mark.slow
@needs_prometheus
def test_every_panel_shows_a_real_run_and_a_stall_fires_an_alert(
    cluster: LocalCluster, prometheus: Prometheus, tmp_path: Path
) -> None:
    began = time.time()

    def start(script: str, *arguments: str) -> subprocess.Popen[str]:
        command = [sys.executable, str(ROOT / "jobs" / script), *arguments]
        environment = {**os.environ, **cluster.environment}
        return subprocess.Popen(command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)

    endless = ["--reservoir.plan=cG@a", "--train.steps=100000", "--cost.budget_usd=50"]
    run = start("pretrain.py", *small_arguments(tmp_path, *endless))
    searched = ["--sweep.trials=2", "--sweep.budget_usd=50", "--sweep.concurrency=1", "--name=search"]
    search = start("sweep.py", *small_arguments(tmp_path, *searched, "--space={reservoir.plan: [T, cG@a]}"))
    try:
        shown = dict.fromkeys(queries())

        def nothing_is_empty() -> bool:
            for where in [where for where, value in shown.items() if value is None]:
                shown[where] = prometheus.newest(where[-1].replace("$run", ".+").replace("$sweep", ".+"), began)
            return all(shown.values()) and search.poll() is not None

        try:
            wait_for(nothing_is_empty, run, search)
        finally:
            print(
                *(f"{board} | {panel} | {query} | {shown[board, panel, query]}" for board, panel, query in shown),
                sep="\n",
            )
        assert not prometheus.is_stalled("tiny")
        workers = list_workers(cluster)
        assert len(workers) == 2
        for worker in workers:
            worker.send_signal(signal.SIGSTOP)
        try:
            wait_for(lambda: prometheus.is_stalled("tiny"), run)
        finally:
            for worker in workers:
                worker.send_signal(signal.SIGCONT)
        wait_for(lambda: not prometheus.is_stalled("tiny"), run)
    finally:
        for job in (run, search):
            job.send_signal(signal.SIGTERM)
    assert run.wait(timeout=60) == 143
