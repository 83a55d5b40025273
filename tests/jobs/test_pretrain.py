"""The main job on a real cluster: submitted, evaluated, started from, and what it leaves behind."""

import json
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from mlflow import MlflowClient
from mlflow.entities import Run

from rcdist.checkpoint.find import find_checkpoints, prove_checkpoint
from rcdist.checkpoint.manifest import Manifest
from rcdist.config import JobConfig
from rcdist.model.cost import count_parameters
from rcdist.record import mlflow_run_id, newest_metrics
from rcdist.tracking.jsonl import LogRecord, MetricsLog
from tests.conftest import ROOT, RayHead
from tests.jobs.run import run_in_process, run_job_script, small_arguments, small_config

pytestmark = pytest.mark.slow


def read_run(config: JobConfig) -> Run:
    run_id = json.loads((config.run_dir / "run.json").read_text())["mlflow_run_id"]
    return MlflowClient(config.tracking_uri).get_run(run_id)


def records(config: JobConfig) -> list[LogRecord]:
    return MetricsLog(config.run_dir).read()


def newest(config: JobConfig) -> tuple[Path, Manifest]:
    folder = find_checkpoints(config.run_dir)[0]
    return folder, prove_checkpoint(folder).manifest


def test_the_submitted_job_streams_its_progress_and_its_summary(submitted: tuple[JobConfig, str]) -> None:
    config, log = submitted
    assert "succeeded" in log
    assert [int(step) for step in re.findall(r"^step +(\d+)/10", log, re.MULTILINE)] == list(range(1, 11))
    for label in ("parameters stored", "bits per byte", "gzip -9", "bigrams, add one", "device seconds", "USD"):
        assert label in log
    assert "(FINISHED)" in log
    assert not re.search("^Traceback", log, re.MULTILINE), log
    assert (config.run_dir / "summary.txt").read_text().strip() in log


def test_every_file_of_a_run_is_documented_with_its_owner(submitted: tuple[JobConfig, str]) -> None:
    rows = re.findall(
        r"^\| (`[^|]+) \| [^|]+ \| ([^|]+) \|$", (ROOT / "rcdist" / "README.md").read_text(), re.MULTILINE
    )
    documented = {name for names, _ in rows for name in re.findall(r"`([^`]+?)/?`", names)}
    found = {re.sub(r"step-\d+", "step-00000600", path.name) for path in submitted[0].run_dir.iterdir()}
    assert found <= documented


def test_mlflow_holds_the_run(submitted: tuple[JobConfig, str]) -> None:
    config, _ = submitted
    run = read_run(config)
    assert run.info.status == "FINISHED"
    assert run.data.params["model.width"] == "64"
    assert run.data.params["reservoir.plan"] == "T cG@a"
    counts = count_parameters(config.architecture)
    assert run.data.params["cost.parameters.stored"] == str(counts.stored)
    assert {"version.ray", "version.torch", "version.deepspeed"} <= run.data.tags.keys()
    client = MlflowClient(config.tracking_uri)
    history = client.get_metric_history(run.info.run_id, "train/loss_nats")
    assert [point.step for point in history] == list(range(1, 11))
    assert [point.value for point in history] == [r.metrics["train/loss_nats"] for r in records(config)]
    assert {file.path for file in client.list_artifacts(run.info.run_id)} >= {"config.yaml", "summary.txt", "cost.txt"}


def test_health_is_recorded_in_the_log_and_in_mlflow(submitted: tuple[JobConfig, str]) -> None:
    config, _ = submitted
    readings = {record.step: record.metrics for record in records(config) if "gate/saturation" in record.metrics}
    assert list(readings) == [5, 10]
    assert "ternary/flip_rate/head" not in readings[5]
    assert 0 < readings[10]["ternary/flip_rate/head"] < 1
    for name in ("ternary/zero_fraction/blocks.0.mlgru.c_proj", "reservoir/effective_rank/blocks.1"):
        assert read_run(config).data.metrics[name] == readings[10][name]
    assert "ternary/zero_fraction/blocks.1.mlgru.c_proj" not in readings[10]  # it is frozen


def test_the_ledger_adds_up(submitted: tuple[JobConfig, str]) -> None:
    config, _ = submitted
    last = newest_metrics(records(config))
    assert last["train/tokens"] == 10 * config.train.global_batch_tokens
    counts = count_parameters(config.architecture)
    assert 4 * counts.frozen * last["train/tokens"] < last["cost/trained_flops"] < 6e6 * last["train/tokens"]
    assert last["cost/usd"] == pytest.approx(last["cost/device_s"] * 0.01 / 3600)
    assert 0 < last["cost/goodput"] < 1
    assert last["reservoir/digest_ok"] == 1.0
    assert last["wire/frozen_bytes_per_step"] == 0
    assert last["wire/bytes_per_step"] >= 4 * counts.trained
    # Two frozen matrices at two bits a weight: 64 x 64 and 128 x 64.
    assert (64 * 64 + 128 * 64) / 4 <= last["wire/start_bytes"] < (64 * 64 + 128 * 64) / 4 + 5000


def test_the_checkpoint_holds_no_frozen_byte(submitted: tuple[JobConfig, str]) -> None:
    config, _ = submitted
    folder, manifest = newest(config)
    counts = count_parameters(config.architecture)
    assert counts.frozen_unique == 64 * 64 + 128 * 64
    weights = torch.load(folder / "zero" / "mp_rank_00_model_states.pt", weights_only=True)["module"]
    assert sum(tensor.numel() for tensor in weights.values()) == counts.trained
    assert not [name for name, tensor in weights.items() if tensor.dtype == torch.int8 or "bank" in name]
    shards = [torch.load(path, weights_only=False) for path in sorted((folder / "zero").glob("*optim_states.pt"))]
    assert len(shards) == manifest.world_size == 2
    assert set(manifest.reservoir["matrices"]) == {"c@a", "G@a"}
    total = sum(entry["bytes"] for name, entry in manifest.files.items() if name.startswith("zero/"))
    # float32 weights once, float32 master and two moments over both ranks; the rest is names and padding.
    assert 16 * counts.trained <= total <= 16 * counts.trained + 200_000


def test_a_finished_run_says_so_and_does_nothing(
    submitted: tuple[JobConfig, str], storage: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (submitted[0].run_dir / "metrics.jsonl").read_bytes()
    assert run_in_process("pretrain.py", small_arguments(storage, "--name=unbroken")) == 0
    assert "has all 10 steps" in capsys.readouterr().out
    assert (submitted[0].run_dir / "metrics.jsonl").read_bytes() == before


@pytest.mark.exhaustive
def test_a_new_run_starts_from_the_checkpoint_of_another(
    submitted: tuple[JobConfig, str], storage: Path, ray_head: RayHead
) -> None:
    arguments = small_arguments(storage, "--name=offspring", f"--checkpoint.resume_from={submitted[0].run_dir}")
    # The same settings would be done at once: the schedule of a longer run is another one.
    code, output, errors = run_job_script("pretrain.py", [*arguments, "--train.steps=12"], ray_head)
    assert code == 0, output + errors
    assert "resumed from step-00000010 at step 10" in output
    offspring = small_config(storage, "--name=offspring")
    assert [r.step for r in records(offspring)] == [11, 12]
    assert read_run(offspring).info.run_id != read_run(submitted[0]).info.run_id
    # Its parent is as it was.
    assert newest(submitted[0])[1].step == 10


@pytest.mark.usefixtures("ray_cpu")
def test_evaluate_repeats_the_runs_own_final_figure(
    submitted: tuple[JobConfig, str], capsys: pytest.CaptureFixture[str]
) -> None:
    config, _ = submitted
    assert run_in_process("evaluate.py", [f"--checkpoint={config.run_dir}"]) == 0
    expected = records(config)[-1].metrics
    found = re.search(r"austen: ([\d.]+) bits/byte, ([\d.]+) nats/token", capsys.readouterr().out)
    assert found
    assert float(found[1]) == pytest.approx(expected["eval/bits_per_byte"], abs=2e-4)
    assert float(found[2]) == pytest.approx(expected["eval/loss_nats"], abs=2e-4)
    run = MlflowClient(config.tracking_uri).get_run(str(mlflow_run_id(config.run_dir)))
    assert run.data.metrics["evaluate/austen/loss_nats"] == pytest.approx(float(found[2]), abs=1e-4)
    assert run.info.status == "FINISHED"


def test_generate_continues_a_prompt_the_same_way_twice(
    submitted: tuple[JobConfig, str], capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [f"--checkpoint={submitted[0].run_dir}", "--prompt=She was", "--max_tokens=12", "--seed=5"]
    texts = []
    for _ in range(2):
        assert run_in_process("generate.py", arguments) == 0
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1]
    assert texts[0].startswith("She was") and len(texts[0].strip()) > len("She was")


@pytest.mark.usefixtures("ray_cpu")
def test_exports_are_the_checkpoint_itself(
    submitted: tuple[JobConfig, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, packed, pairs = submitted[0], tmp_path / "packed", tmp_path / "pairs.parquet"
    for form in ("packed", "hf"):
        arguments = [f"--checkpoint={config.run_dir}", f"--out={tmp_path / form}", f"--format={form}"]
        arguments.append(f"--log_model={form == 'packed'}")
        assert run_in_process("export.py", arguments) == 0
        printed = capsys.readouterr().out
        assert "step 10 of 'unbroken'" in printed and ("MLflow model models:/" in printed) == (form == "packed")
        card = (tmp_path / form / "README.md").read_text()
        counts = count_parameters(config.architecture)
        assert f"| parameters stored | {counts.stored:,} |" in card and "bits per byte" in card
        # Not over what is there, and not of what is an export itself.
        assert run_in_process("export.py", arguments) == 2
        assert capsys.readouterr().err.startswith("out=")
    assert run_in_process("export.py", [f"--checkpoint={packed}", f"--out={tmp_path / 'again'}"]) == 2
    assert "an export itself" in capsys.readouterr().err
    pq.write_table(pa.table({"sentence_good": ["She was"], "sentence_bad": ["was She"], "uid": ["x"]}), pairs)
    found = {}
    for folder in (config.run_dir, packed):
        arguments = [f"--checkpoint={folder}", "--json", f"--blimp={pairs}"]
        assert run_in_process("evaluate.py", arguments) == 0
        found[folder] = json.loads(capsys.readouterr().out)
    assert found[packed]["blimp"] == found[config.run_dir]["blimp"]
    assert found[packed]["texts"]["austen"] == pytest.approx(found[config.run_dir]["texts"]["austen"], rel=1e-5)
    texts = []
    for folder in (config.run_dir, packed, tmp_path / "hf"):
        arguments = [f"--checkpoint={folder}", "--prompt=She was", "--max_tokens=12", "--top_p=0.9", "--stop=zzz"]
        assert run_in_process("generate.py", arguments) == 0
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1] == texts[2]
