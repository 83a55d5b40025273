"""Training steps on a real GPU: as CUDA graphs, launched one by one, and by DeepSpeed's hooks; skipped without one."""

import math
import os
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist

from rcdist.ops.replay import Replay
from rcdist.ports import free_port
from tests.train.zero_worker import SEQ_LEN, WINDOWS, build_model, job, micro_batch, windows

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")]

CPU = torch.device("cpu")
"""A Replay for it captures nothing."""
STEPS = 6


@pytest.fixture(scope="module", autouse=True)
def _one_rank() -> Iterator[None]:
    os.environ |= {"DS_ACCELERATOR": "cuda", "RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}  # for DeepSpeed
    store = dist.TCPStore("127.0.0.1", free_port(), 1, is_master=True)
    dist.init_process_group("nccl", store=store, rank=0, world_size=1, device_id=torch.device("cuda", 0))
    yield
    dist.destroy_process_group()


def build(stage: int, precision: str = "bf16", *, is_captured: bool = True, **settings: Any) -> Any:
    """Return an engine whose steps are graphs, or are launched one by one."""
    from rcdist.train.engine import Engine

    config = job(stage, precision, **settings)
    torch.manual_seed(0)
    engine = Engine(build_model(config), config, world_size=1, device=torch.device("cuda", 0))
    if not is_captured:
        engine.steps._replay = Replay(CPU)  # type: ignore[union-attr]
    return engine


def train(engine: Any, *, is_disturbed: bool = True) -> list[tuple[float, float, bool, float]]:
    """Train, two windows at the limit of loss or with padding of infinite weight; return what each step measured."""
    found = []
    for step in range(STEPS):
        rows = windows(step)
        batches = [micro_batch(rows[i : i + 1]) for i in range(WINDOWS)]
        batches[1].weights_BT[0, -3:] = 0.0
        batches[2].starts_BT[0, step] = True
        if is_disturbed and step == 2:
            batches[0].weights_BT[0, 3] = float("inf")
        limit = 1e-3 if is_disturbed and step == 4 else math.inf
        result = engine.train_step(
            batches, WINDOWS * SEQ_LEN, learning_rate=1e-2, weight_decay=0.1, loss_limit=limit, also_sum=(float(step),)
        )
        assert result.summed == (step,)
        held_out = sum(float(engine.evaluate_sum(micro_batch(windows(100 + i)[:2]))) for i in range(3))
        found.append((result.loss_nats, result.grad_norm, result.applied, held_out))
    return found


ARITHMETIC = pytest.mark.parametrize(
    ("stage", "precision"), [(0, "bf16"), (0, "fp32"), (1, "bf16"), (2, "bf16"), (1, "fp32")]
)


@ARITHMETIC
def test_graphs_and_single_launches_agree_bit_for_bit(stage: int, precision: str) -> None:
    engine = build(stage, precision)
    captured, launched = train(engine), train(build(stage, precision, is_captured=False))
    assert engine.steps.num_graphs == 3  # a micro-batch, an evaluation, the rounding of the weights
    assert [step[2] for step in captured] == [True, True, False, True, False, True]
    assert str(captured) == str(launched)  # NaN equals NaN
    assert captured[2][3] == captured[1][3] and captured[5][3] != captured[4][3]


def test_an_evaluation_that_first_comes_late_is_a_graph_too() -> None:
    engine = build(1)
    for step in range(4):
        batches = [micro_batch(windows(step)[i : i + 1]) for i in range(WINDOWS)]
        engine.train_step(batches, WINDOWS * SEQ_LEN, learning_rate=1e-2, weight_decay=0.1)
    for _ in range(2):
        engine.evaluate_sum(micro_batch(windows(100)[:2]))
    assert engine.steps.num_graphs == 3


@ARITHMETIC
def test_steps_agree_with_those_of_deepspeeds_hooks(stage: int, precision: str) -> None:
    ours, theirs = train(build(stage, precision)), train(build(stage, precision, cuda_graphs=False))
    assert [step[2] for step in ours] == [step[2] for step in theirs]
    for own, other in zip(ours, theirs, strict=True):
        # Sums of bfloat16 are kept in float32 here; codes on an edge may flip.
        assert own[3] == pytest.approx(other[3], rel=2e-2 if precision == "bf16" else 4e-3)


def test_recomputed_activations_are_captured_too() -> None:
    engine = build(1, activation_checkpointing=True)
    assert str(train(engine)) == str(train(build(1)))
    assert engine.steps.num_graphs == 3


def test_what_cannot_be_captured_runs_all_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    replay, total = Replay(torch.device("cuda", 0)), torch.zeros((), device="cuda")
    for _ in range(4):
        replay.run("read", lambda: total.add_(float(total) + 1))
    assert float(total) == 15 and replay.num_graphs == 0
    assert "CUDA graphs are off" in capsys.readouterr().out
    assert torch.rand(3, device="cuda").unique().numel() == 3  # numbers can still be drawn


def test_auto_takes_what_fits() -> None:
    from rcdist.train.micro_batch import with_micro_batch

    config = job(1, "bf16", micro_batch_size="auto")
    config = config.model_copy(update={"data": config.data.model_copy(update={"seq_len": 2048})})
    model, sizes = build_model(config), []
    for reserved_share in (0.0, 0.9):
        torch.cuda.empty_cache()
        free, _ = torch.cuda.mem_get_info()
        taken = torch.empty(int(free * reserved_share), dtype=torch.uint8, device="cuda")
        sizes.append(with_micro_batch(config, model, torch.device("cuda", 0)).train.micro_batch_size)
        del taken
    assert sizes[0] == 32  # 65,536 tokens
    assert 1 <= sizes[1] <= 32


def test_stages_agree_bit_for_bit_on_one_gpu() -> None:
    assert str(train(build(1))) == str(train(build(2)))


def test_a_restored_engine_goes_on_as_the_first(tmp_path: Any) -> None:
    from rcdist.checkpoint.files import count_bytes, write_rank

    engine = build(2)
    train(engine, is_disturbed=False)
    contents = engine.snapshot()
    expected = train(engine)  # what was copied is of before
    engine.wait_for_snapshot()
    write_rank(tmp_path, 0, contents)
    written = sum(path.stat().st_size for path in tmp_path.rglob("*.pt"))
    assert written < 1.5 * count_bytes(contents) + 10**6  # each tensor's own storage
    other = build(2)
    train(other)  # its graphs know other weights
    other.restore(tmp_path)
    assert str(train(other)) == str(expected)
