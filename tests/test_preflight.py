"""What is refused before anything starts, and from which checkpoint a run goes on."""

import io
import json
from pathlib import Path

import pytest
import torch

from rcdist import preflight as module
from rcdist.checkpoint.files import write_rank
from rcdist.checkpoint.find import checkpoint_name
from rcdist.checkpoint.manifest import CONFIG, MANIFEST, Manifest, write_manifest
from rcdist.checkpoint.state import LoopState
from rcdist.config import JobConfig
from rcdist.data.prepare import PreparedData
from rcdist.data.shards import CorpusInfo
from rcdist.errors import BudgetError, CheckpointError, ConfigError
from rcdist.preflight import check_config, check_data, find_resume, keep_version
from rcdist.tracking.ledger import Ledger


def job(storage: Path, name: str = "run", **settings: dict) -> JobConfig:
    sections: dict = {"model": {"num_layers": 2, "width": 32, "glu_width": 48}, "train": {"steps": 40}}
    for section, values in settings.items():
        sections[section] = sections.get(section, {}) | values
    return JobConfig(name=name, storage_path=str(storage), **sections)


def save(config: JobConfig, step: int) -> Path:
    """Leave a checkpoint as workers do."""
    folder, tensors = config.run_dir / checkpoint_name(step), io.BytesIO()
    folder.mkdir(parents=True)
    torch.save({"weight": torch.zeros(step)}, tensors)
    write_rank(folder, 0, {CONFIG: config.model_dump_json().encode(), "zero/rank0.pt": tensors.getvalue()})
    manifest = Manifest(
        state=LoopState(step=step, cursor=step),
        world_size=1,
        zero_stage=2,
        ledger=Ledger(usd=1.0, device_s=60.0),
        mlflow_run_id=None,
        reservoir={"digest": "d" * 64},
        tokenizer_digest="t",
        data_digest="c",
    )
    write_manifest(folder, manifest)
    return folder


def test_a_new_name_is_a_new_run(tmp_path: Path) -> None:
    assert find_resume(job(tmp_path)) is None


def test_the_newest_checkpoint_is_taken_and_a_damaged_one_named_and_skipped(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = job(tmp_path)
    save(config, 10)
    (save(config, 20) / "zero" / "rank0.pt").write_bytes(b"?")
    found = find_resume(config)
    assert found is not None and (found.folder.name, found.manifest.step) == (checkpoint_name(10), 10)
    assert caplog.text.count("skipped: ") == len(found.damaged) == 1 and "rank0.pt" in caplog.text


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"model": {"width": 64}}, "model.width=64: the checkpoint of run 'run' at step 10 has 32"),
        ({"reservoir": {"seed": 8}}, "reservoir.seed=8: "),
        ({"data": {"seed": 1}}, "data.seed=1: "),
        ({"train": {"zero_stage": 3}}, "train.zero_stage=3: "),
        ({"train": {"precision": "bf16"}}, 'train.precision="bf16": '),
    ],
)
def test_another_model_or_order_of_data_does_not_go_on(tmp_path: Path, settings: dict, expected: str) -> None:
    save(job(tmp_path), 10)
    with pytest.raises(CheckpointError) as caught:
        find_resume(job(tmp_path, **settings))
    assert expected in str(caught.value)


def test_a_run_keeps_the_version_of_its_frozen_matrices(tmp_path: Path) -> None:
    config = job(tmp_path)
    folder = save(config, 10)
    settings = json.loads((folder / CONFIG).read_text())
    del settings["reservoir"]["version"]  # as it was saved when there was only one
    write_rank(folder, 0, {CONFIG: json.dumps(settings).encode(), "zero/rank0.pt": b"?"})
    found = find_resume(config)
    assert (keep_version(config, found).reservoir.version, keep_version(config, None).reservoir.version) == (1, 2)
    with pytest.raises(CheckpointError, match=r"reservoir\.version=2: the checkpoint of run 'run' at step 10 has 1"):
        find_resume(job(tmp_path, reservoir={"version": 2}))


def test_how_the_bank_arrives_may_change(tmp_path: Path) -> None:
    save(job(tmp_path), 10)
    assert find_resume(job(tmp_path, reservoir={"source": "regenerate"})) is not None


def test_resuming_can_be_forbidden(tmp_path: Path) -> None:
    save(job(tmp_path), 10)
    with pytest.raises(ConfigError, match="the run has a checkpoint at step 10"):
        find_resume(job(tmp_path, checkpoint={"resume": False}))


@pytest.mark.parametrize("budget", [{"budget_usd": 1.0}, {"budget_device_s": 59.0}])
def test_a_budget_that_is_used_up_is_said_before_anything_starts(tmp_path: Path, budget: dict) -> None:
    save(job(tmp_path), 10)
    with pytest.raises(BudgetError, match=r"has used .* by step 10"):
        find_resume(job(tmp_path, cost=budget))


def test_a_run_starts_from_the_newest_checkpoint_of_another(tmp_path: Path) -> None:
    parent = job(tmp_path, "parent")
    save(parent, 10)
    folder = save(parent, 20)
    for given in (parent.run_dir, folder):
        child = job(tmp_path, "child", checkpoint={"resume_from": str(given)})
        found = find_resume(child)
        assert found is not None and found.folder == folder.resolve()
    with pytest.raises(ConfigError, match="has 20 already"):
        find_resume(job(tmp_path, "child", train={"steps": 20}, checkpoint={"resume_from": str(folder)}))


def test_only_damaged_checkpoints_are_an_error(tmp_path: Path) -> None:
    (save(job(tmp_path), 10) / MANIFEST).write_text("{")
    with pytest.raises(CheckpointError):
        find_resume(job(tmp_path))


def test_other_text_or_another_tokenizer_is_refused_with_both_digests(tmp_path: Path) -> None:
    save(job(tmp_path), 10)
    found = find_resume(job(tmp_path))
    assert found is not None

    def prepared(text: str, tokenizer: str) -> PreparedData:
        info = CorpusInfo(
            path=str(tmp_path),
            digest=text,
            tokenizer_digest=tokenizer,
            **{n: 1 for n in CorpusInfo.__dataclass_fields__ if n not in ("path", "digest", "tokenizer_digest")},
        )
        return PreparedData(info, info, str(tmp_path), tokenizer)

    check_data(found, prepared("c", "t"))
    for text, tokenizer in (("other", "t"), ("c", "other")):
        with pytest.raises(CheckpointError, match=r"other.*digest [ct]"):
            check_data(found, prepared(text, tokenizer))


def test_storage_is_tried_before_it_is_needed(tmp_path: Path) -> None:
    check_config(job(tmp_path / "new" / "folder"))
    assert (tmp_path / "new" / "folder").is_dir() and not list((tmp_path / "new" / "folder").iterdir())
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be written"):
        check_config(job(tmp_path / "file"))


def test_a_full_disk_is_said_before_anything_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.tempfile, "NamedTemporaryFile", lambda dir: open("/dev/full", "wb"))  # noqa: SIM115
    with pytest.raises(ConfigError, match=r"cannot be written \(No space left on device\). Make room"):
        check_config(job(tmp_path))


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ({"bf16": {"check_grad_overflow": False}}, "deepspeed.bf16.check_grad_overflow=False: rcdist relies on True"),
        ({"zero_optimization": 0}, "deepspeed.zero_optimization=0: is a section of keys"),
        ({"zero_optimisation": {}}, "The nearest one is deepspeed.zero_optimization"),
        ({"flops_profiler": {"enable": True}}, "deepspeed.flops_profiler.enable=True: there is no such key"),
        ({"timers": {"throughput": {"sync": 1}}}, "nearest one is deepspeed.timers.throughput.synchronized"),
        ({"aio": {"block_size": "big"}}, 'deepspeed.aio.block_size="big": must be a valid integer'),
        ({"data_types": {"grad_accum_dtype": "fp8"}}, "deepspeed.data_types.grad_accum_dtype="),
        ({"comms_logger": {"enable": True}}, "DeepSpeed refuses it (Extra inputs are not permitted)"),
        ({"wandb": {"teem": "a"}}, "deepspeed.wandb.teem="),
        ({"wandb": {"enabled": True}}, "needs the package wandb, which is not installed"),
        ({"steps_per_print": "often"}, 'deepspeed.steps_per_print="often": must be a valid integer'),
        ({"steps_per_print": {"a": 1}}, "deepspeed.steps_per_print={'a': 1}: must be a valid integer"),
        ({"wall_clock_breakdown": 7}, "deepspeed.wall_clock_breakdown=7: must be a valid boolean"),
        ({"zero_optimization": {"overlap_com": 1}}, "deepspeed.zero_optimization.overlap_com=1: DeepSpeed refuses it"),
        ({"zero_optimization": {"reduce_bucket_size": "x"}}, 'deepspeed.zero_optimization.reduce_bucket_size="x": '),
        ({"communication_data_type": "fp7"}, "must be 'fp32', 'fp16' or 'bf16'"),
        ({"gradient_allreduce_op": "sum"}, "rcdist relies on mean"),
        ({"checkpoint": {"load_universal": True}}, "rcdist sets it from checkpoint."),
    ],
)
def test_raw_keys_are_proved(tmp_path: Path, raw: dict, expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_config(job(tmp_path, deepspeed=raw))
    assert expected in str(caught.value)


def test_raw_keys_that_deepspeed_knows_pass(tmp_path: Path) -> None:
    check_config(job(tmp_path, deepspeed={"zero_optimization": {"overlap_comm": False, "stage": "auto"}}))
