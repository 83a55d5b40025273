"""Bad input: one line that names field, rule and remedy, the documented exit code, and nothing half-written."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import torch

from rcdist.checkpoint.find import find_checkpoints
from rcdist.checkpoint.manifest import rank_list_name
from rcdist.config import JobConfig
from rcdist.ports import free_port
from tests.checkpoint.test_untrusted import Attack
from tests.jobs.run import run_in_process, small_arguments


def refuse(capsys: pytest.CaptureFixture[str], storage: Path, *more: str, script: str = "pretrain.py") -> str:
    """Run the job with bad input and return its one line of stderr."""
    before = sorted(str(path) for path in (storage / "runs").rglob("*")) if (storage / "runs").exists() else []
    code = run_in_process(script, small_arguments(storage, *more) if script == "pretrain.py" else list(more))
    captured = capsys.readouterr()
    assert code == 2, captured.err
    assert captured.err.endswith("\n") and captured.err.count("\n") == 1, captured.err
    assert "Traceback" not in captured.out + captured.err
    after = sorted(str(path) for path in (storage / "runs").rglob("*")) if (storage / "runs").exists() else []
    assert after == before
    return captured.err.strip()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--train.step=3"], ["train.step=", "train.steps"]),
        (["--trian.steps=3"], ["trian.steps=", "train"]),
        (["--train.steps=many"], ["train.steps=", "many"]),
        (["--train.steps=0"], ["train.steps=0", "1"]),
        (["--optimizer.learning_rate=-1"], ["optimizer.learning_rate=-1", "0"]),
        (["--train.precision=fp8"], ["train.precision=", "fp32", "bf16"]),
        (["--train.global_batch_tokens=1000"], ["train.global_batch_tokens=1000", "data.seq_len=64", "960 or 1024"]),
        (["--reservoir.plan=T cG@a x"], ["reservoir.plan=", "'x'", "token 3"]),
        (["--reservoir.connectivity={q: 0.5}"], ["reservoir.connectivity", "'q'"]),
        (["--config=/nowhere.yaml"], ["config=", "no such file"]),
        (["--deepspeed={train_batch_size: 4}"], ["deepspeed.train_batch_size=4", "train.global_batch_tokens"]),
        (["--tokenizer.kind=file"], ["tokenizer.path=None", "tokenizer.kind=file"]),
        (["--storage_path=/proc/no"], ["storage_path=", "/proc/no", "cannot be written"]),
        (["--storage_path=ftp://host/x"], ["storage_path=", "neither a folder nor a bucket"]),
    ],
    ids=lambda value: " ".join(value)[:40] if value and value[0].startswith("--") else "",
)
def test_a_wrong_setting_is_one_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, arguments: list[str], expected: list[str]
) -> None:
    line = refuse(capsys, tmp_path, *arguments)
    for part in expected:
        assert part in line, line


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--cost.node_type=abacus"], ["cost.node_type=", "abacus"]),
        (["--tokenizer.kind=file", "--tokenizer.path=/nowhere.json"], ["tokenizer.path=", "no such file"]),
        (["--data.train=/nowhere.txt"], ["data.train=", "no such file"]),
    ],
    ids=lambda value: " ".join(value)[:40] if value and value[0].startswith("--") else "",
)
@pytest.mark.usefixtures("ray_cpu")
def test_a_wrong_setting_that_needs_ray_to_be_found_is_one_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, arguments: list[str], expected: list[str]
) -> None:
    line = refuse(capsys, tmp_path, *arguments)
    for part in expected:
        assert part in line, line


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("empty.txt", b"", "0 bytes of text"),
        ("latin.txt", b"caf\xe9", "not UTF-8 at byte 3"),
        ("short.txt", b"three short words", "data.seq_len + 1 = 65"),
        ("a.pdf", b"%PDF", "extension '.pdf'"),
    ],
)
@pytest.mark.usefixtures("ray_cpu")
def test_a_corpus_that_cannot_be_used_is_one_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, name: str, content: bytes, expected: str
) -> None:
    (tmp_path / name).write_bytes(content)
    line = refuse(capsys, tmp_path, f"--data.train={tmp_path / name}")
    assert line.startswith("data.train=") and expected in line


def test_a_tracking_server_that_does_not_answer_is_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    uri = f"http://user:hunter2@127.0.0.1:{free_port()}"
    line = refuse(capsys, tmp_path, f"--tracking.uri={uri}", "--tracking.timeout_s=3")
    assert line.startswith("tracking.uri=") and "hunter2" not in line


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--model.width=128"], ["model.width=128", "has 64"]),
        (["--reservoir.seed=8"], ["reservoir.seed=8", "has 0", "digest", "against"]),
        (["--data.seed=1"], ["data.seed=1", "has 0"]),
        (["--train.zero_stage=3"], ["train.zero_stage=3", "has 2"]),
        (["--tokenizer.kind=bytes"], ["tokenizer=", "was trained with digest"]),
        (["--checkpoint.resume=false"], ["name=", "checkpoint.resume=false"]),
    ],
    ids=lambda value: " ".join(value)[:40] if value and value[0].startswith("--") else "",
)
@pytest.mark.usefixtures("ray_cpu")
def test_another_model_or_tokenizer_does_not_continue_a_run(
    capsys: pytest.CaptureFixture[str],
    submitted: tuple[JobConfig, str],
    arguments: list[str],
    expected: list[str],
) -> None:
    storage = submitted[0].storage
    line = refuse(capsys, storage, "--name=unbroken", "--train.steps=20", *arguments)
    for part in expected:
        assert part in line, line


@pytest.mark.parametrize("script", ["generate.py", "evaluate.py"])
def test_a_checkpoint_that_is_not_there_is_one_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, script: str
) -> None:
    line = refuse(capsys, tmp_path, f"--checkpoint={tmp_path / 'absent'}", script=script)
    assert line.startswith("checkpoint=") and "no such folder" in line
    line = refuse(capsys, tmp_path, f"--checkpoint={tmp_path}", script=script)
    assert "no step-... checkpoint" in line


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cpu")
def test_more_workers_than_a_machine_has_do_not_fit(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code = run_in_process("pretrain.py", small_arguments(tmp_path, "--cluster.num_workers=64"))
    line = capsys.readouterr().err
    assert code == 3
    assert line.startswith("cluster.num_workers=64: needs 64 CPUs, this machine's Ray has 4.")
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_code_in_a_checkpoint_from_elsewhere_does_not_run(
    capsys: pytest.CaptureFixture[str], submitted: tuple[JobConfig, str], tmp_path: Path
) -> None:
    folder = tmp_path / "downloaded"
    shutil.copytree(find_checkpoints(submitted[0].run_dir)[0], folder)
    mark, shard = tmp_path / "mark", folder / "zero" / "mp_rank_00_model_states.pt"
    torch.save({"module": {}, "more": Attack(f"touch {mark}")}, shard)
    listed = folder / rank_list_name(0)
    digest = hashlib.sha256(shard.read_bytes()).hexdigest()
    entry = {f"zero/{shard.name}": {"sha256": digest, "bytes": shard.stat().st_size}}
    listed.write_text(json.dumps(json.loads(listed.read_text()) | entry))
    line = refuse(capsys, tmp_path, f"--checkpoint.resume_from={folder}")
    assert "holds more than tensors" in line
    assert not mark.exists()


@pytest.mark.slow
def test_a_start_without_steps_left_is_refused(
    capsys: pytest.CaptureFixture[str], submitted: tuple[JobConfig, str], tmp_path: Path
) -> None:
    line = refuse(capsys, tmp_path, f"--checkpoint.resume_from={submitted[0].run_dir}")
    assert line == "train.steps=10: the checkpoint step-00000010 that the run starts from has 10 already. Raise it."


def test_a_start_from_nowhere_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert "there is no such folder" in refuse(capsys, tmp_path, f"--checkpoint.resume_from={tmp_path}/none")


def test_fewest_workers_above_most_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    line = refuse(capsys, tmp_path, "--cluster.num_workers=[3,2]")
    assert line.startswith("cluster.num_workers=")
    assert "the least, 3, is more than the most, 2" in line
