"""Faults of nodes: they are lost, announced, come back, and the run has as many workers as there is room for."""

import signal
from collections import Counter
from pathlib import Path

from rcdist.chaos.context import Context
from rcdist.chaos.verdict import RESIZED_TOLERANCE
from rcdist.checkpoint.find import checkpoint_name, find_checkpoints, step_of
from rcdist.errors import EXIT_DONE, EXIT_STOPPED
from rcdist.tracking.jsonl import MetricsLog
from rcdist.tracking.samples import read_samples

_LOG_EVERY = 10
_LONG = ["--train.steps=1000", f"--train.log_every_steps={_LOG_EVERY}", "--evaluate.every_steps=null"]
_LONG += ["--tracking.health_every_steps=null"]
"""A run that is still going when nodes have come and gone."""


def node_loss(context: Context) -> None:
    """A node is killed, and another one comes."""
    node = context.cluster.add_node(1)
    process = context.job.start()
    context.verdict.expect(context.job.wait_for_step(process, 8), "step 8 was not reached")
    context.cluster.kill_node(node)
    context.cluster.add_node(1)
    context.expect_end(context.job.end(process), EXIT_DONE, "resumed from")
    context.judge()


def shrunk(context: Context) -> None:
    """A node is killed, and none comes."""
    node = context.cluster.add_node(1)
    elastic = ["--cluster.num_workers=[1,2]", "--cluster.start_timeout_s=5"]
    process = context.job.start(*elastic)
    context.verdict.expect(context.job.wait_for_step(process, 8), "step 8 was not reached")
    context.cluster.kill_node(node)
    context.expect_end(context.job.end(process), EXIT_DONE, "resumed from")
    context.judge(*elastic, tolerance=RESIZED_TOLERANCE)


def preemption(context: Context) -> None:
    """A node is announced to go, and goes."""
    node = context.cluster.add_node(1)
    # No failure is allowed: pre-emption with notice is not one. No checkpoint is due but the one after the notice.
    settings = [*_LONG, "--cluster.max_failures=0", "--checkpoint.every_steps=null"]
    process = context.job.start(*settings)
    context.wait(process, lambda: bool(MetricsLog(context.run_dir).read()))
    context.cluster.drain_other(deadline_s=12)
    context.verdict.expect(
        context.wait(process, lambda: bool(find_checkpoints(context.run_dir))), "the notice saved nothing"
    )
    context.cluster.add_node(1)
    # The cloud takes the machine away when the time is over; Ray has moved the workers by then.
    context.verdict.expect(
        context.wait(process, lambda: _newest_size(context.run_dir) == 2), "training did not go on elsewhere"
    )
    context.cluster.kill_node(node)
    context.expect_end(context.job.end(process), EXIT_DONE, "a node is about to be taken away", "resumed from")
    context.judge(*settings, is_same=False)


def elastic(context: Context, kept: int = 1, lost: int = 1, steps: int = 1000) -> None:
    """A node with some of the workers is lost, another one comes: in one job that never ends meanwhile."""
    every = kept + lost
    node = context.cluster.add_node(lost)
    long = [*_LONG, f"--train.steps={steps}", "--checkpoint.every_steps=20", "--checkpoint.keep_every_steps=20"]
    patience = max(15, 8 * every)
    changing = [f"--cluster.num_workers=[1,{every}]", "--cluster.resize_interval_s=2"]
    process = context.job.start(*long, *changing, f"--cluster.start_timeout_s={patience}")
    reached = context.job.wait_for_step(process, 100, timeout_s=10 * patience)
    context.verdict.expect(reached, "step 100 was not reached")
    context.cluster.kill_node(node)
    fewer = context.wait(process, lambda: _newest_size(context.run_dir) == kept, 10 * patience)
    context.verdict.expect(fewer, f"training did not go on with {kept} workers")
    # What they do before their first checkpoint is done again, and could not be compared.
    saved = context.wait(process, lambda: _has_saved(context.run_dir), 10 * patience)
    context.verdict.expect(saved, f"{kept} workers saved nothing")
    context.cluster.add_node(lost)
    again = context.wait(process, lambda: _newest_size(context.run_dir) == every, 10 * patience)
    context.verdict.expect(again, f"training did not go on with {every} workers again")
    context.expect_end(context.job.end(process), EXIT_DONE)
    # Steps that were done again by another number of workers: MLflow has the first, rounded in another order.
    context.judge(*long, is_same=False, tolerance=RESIZED_TOLERANCE)
    _compare_parts(context, long)


def _compare_parts(context: Context, settings: list[str]) -> None:
    """Compare each stretch with a run of so many workers from the same checkpoint on: every loss, bit for bit."""
    run_dir, name = context.run_dir, context.job.name
    broken = {record.step: record.metrics["train/loss_nats"] for record in MetricsLog(run_dir).read()}
    sizes = [size for _, size in sorted(_sizes(run_dir).items())]
    firsts = [min(steps) for steps in read_samples(run_dir)]
    for number, (first, size) in enumerate(zip(firsts, sizes, strict=True)):
        start = [] if first == 1 else [f"--checkpoint.resume_from={run_dir / checkpoint_name(first - 1)}"]
        context.job.name = f"{name}-part-{number}"
        context.expect_end(context.job.run(*settings, f"--cluster.num_workers={size}", *start), EXIT_DONE)
        end = min((later for later in firsts[number + 1 :]), default=len(broken) * _LOG_EVERY + 1)
        whole = {r.step: r.metrics["train/loss_nats"] for r in MetricsLog(context.run_dir).read()}
        steps = [step for step in broken if first <= step < end]
        far = [step for step in steps if whole.get(step) != broken[step]]
        context.verdict.expect(bool(steps) and not far, f"{size} workers from step {first}: losses differ at {far}")


def _sizes(run_dir: Path) -> dict[str, int]:
    """Return how many workers each group had that has done a step, by its time."""
    paths = (run_dir / "samples").glob("*.jsonl")
    return Counter(path.name.split("-")[0] for path in paths if path.stat().st_size > 0)


def _newest_size(run_dir: Path) -> int:
    """Return how many workers the newest group has, as far as they have done a step; 0 for a run's first group."""
    sizes = _sizes(run_dir)
    return sizes[max(sizes)] if len(sizes) > 1 else 0


def _has_saved(run_dir: Path) -> bool:
    """Say whether the newest group has saved a checkpoint."""
    steps = read_samples(run_dir)[-1]
    return bool(steps) and step_of(find_checkpoints(run_dir)[0]) >= min(steps)


def resized(context: Context) -> None:
    """Stop and go on with 3 workers, which do not divide the batch, then 1, then 2."""
    for step, size in ((4, 2), (8, 3), (16, 1)):
        process = context.job.start(f"--cluster.num_workers={size}")
        context.verdict.expect(context.job.wait_for_step(process, step), f"step {step} was not reached")
        process.send_signal(signal.SIGTERM)
        context.expect_end(context.job.end(process), EXIT_STOPPED)
    context.expect_end(context.job.run("--cluster.num_workers=2"), EXIT_DONE, "resumed from")
    context.judge(tolerance=RESIZED_TOLERANCE)
