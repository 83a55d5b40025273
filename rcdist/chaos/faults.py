"""The faults by name: what each does to a run, and how the run must end."""

import contextlib
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rcdist.chaos.context import Context
from rcdist.chaos.damage import DAMAGES
from rcdist.chaos.mlflow_server import MlflowServer
from rcdist.chaos.verdict import RESIZED_TOLERANCE
from rcdist.checkpoint.find import checkpoint_name, find_checkpoints
from rcdist.errors import EXIT_BUDGET, EXIT_DIVERGED, EXIT_DONE, EXIT_STOPPED
from rcdist.tracking.jsonl import MetricsLog
from rcdist.tracking.samples import read_samples
from rcdist.train.events import Event

_TMPFS_BYTES = 64 * 2**20
_GROWN_TOLERANCE = 0.05  # of one step's loss, after up to 50 steps in which rounding to ternary made it grow
_LONG = ["--train.steps=1000", "--train.log_every_steps=10", "--evaluate.every_steps=null"]
_LONG += ["--tracking.health_every_steps=null"]
"""A run that is still going when nodes have come and gone."""
_LEFT_BYTES = 2**20
"""Room that a full storage has left: for records, not for a checkpoint."""


@dataclass(frozen=True)
class Fault:
    """Hold a fault.

    Attributes:
        what: in words.
        end: how the run ends, in words.
        run: does it, and notes in the context's verdict what is not as it should be.
        nodes: CPU slots of the cluster's head, where the fault needs a cluster of its own; None: any will do.
        object_store_bytes: of that cluster's nodes.
    """

    what: str
    end: str
    run: Callable[[Context], None]
    nodes: int | None = None
    object_store_bytes: int = 200_000_000


def _kill_worker(fault: str) -> Callable[[Context], None]:
    def run(context: Context) -> None:
        ended = context.job.run(environment={"RCDIST_FAULT": fault})
        context.expect_end(ended, EXIT_DONE, "resumed from")
        context.verdict.expect(len(read_samples(context.run_dir)) == 2, "the workers were not started twice")
        context.judge()

    return run


def _node_loss(context: Context) -> None:
    node = context.cluster.add_node(1)
    process = context.job.start()
    context.verdict.expect(context.job.wait_for_step(process, 8), "step 8 was not reached")
    context.cluster.kill_node(node)
    context.cluster.add_node(1)
    context.expect_end(context.job.end(process), EXIT_DONE, "resumed from")
    context.judge()


def _shrunk(context: Context) -> None:
    node = context.cluster.add_node(1)
    elastic = ["--cluster.num_workers=[1,2]", "--cluster.start_timeout_s=5"]
    process = context.job.start(*elastic)
    context.verdict.expect(context.job.wait_for_step(process, 8), "step 8 was not reached")
    context.cluster.kill_node(node)
    context.expect_end(context.job.end(process), EXIT_DONE, "resumed from")
    context.judge(*elastic, tolerance=RESIZED_TOLERANCE)


def _preemption(context: Context) -> None:
    node = context.cluster.add_node(1)
    # No failure is allowed: pre-emption with notice is not one. No checkpoint is due but the one after the notice.
    settings = [*_LONG, "--cluster.max_failures=0", "--checkpoint.every_steps=null"]
    process = context.job.start(*settings)
    _wait(process, lambda: bool(MetricsLog(context.run_dir).read()))
    context.cluster.drain_other(deadline_s=12)
    context.verdict.expect(_wait(process, lambda: bool(find_checkpoints(context.run_dir))), "the notice saved nothing")
    context.cluster.add_node(1)
    # The cloud takes the machine away when the time is over; Ray has moved the workers by then.
    context.verdict.expect(
        _wait(process, lambda: _newest_size(context.run_dir) == 2), "training did not go on elsewhere"
    )
    context.cluster.kill_node(node)
    context.expect_end(context.job.end(process), EXIT_DONE, "a node is about to be taken away", "resumed from")
    context.judge(*settings, is_same=False)


def _wait(process: subprocess.Popen[str], holds: Callable[[], bool], timeout_s: float = 150.0) -> bool:
    """Wait until a condition holds or the job ends; return whether it holds."""
    deadline = time.monotonic() + timeout_s
    while not (held := holds()) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    return held


def _elastic(context: Context) -> None:
    """2 workers, one node lost, 1 worker, a node comes, 2 workers: in one job that never ends meanwhile."""
    node = context.cluster.add_node(1)
    long = [*_LONG, "--checkpoint.every_steps=50"]
    elastic = ["--cluster.num_workers=[1,2]", "--cluster.resize_interval_s=2", "--cluster.start_timeout_s=15"]
    process = context.job.start(*long, *elastic)
    context.verdict.expect(context.job.wait_for_step(process, 100), "step 100 was not reached")
    context.cluster.kill_node(node)
    context.verdict.expect(
        _wait(process, lambda: _newest_size(context.run_dir) == 1), "training did not go on with one worker"
    )
    context.cluster.add_node(1)
    context.verdict.expect(
        _wait(process, lambda: _newest_size(context.run_dir) == 2), "training did not go on with two workers again"
    )
    context.expect_end(context.job.end(process), EXIT_DONE)
    context.judge(*long, is_same=False, tolerance=_GROWN_TOLERANCE)
    broken = MetricsLog(context.run_dir).read()
    context.job.name += "-unbroken"
    context.expect_end(context.job.run(*long), EXIT_DONE)
    whole = MetricsLog(context.run_dir).read()
    pairs = [(a.metrics["train/loss_nats"], b.metrics["train/loss_nats"]) for a, b in zip(broken, whole, strict=True)]
    # Rounding to ternary makes the small difference of a resize grow, batch by batch up or down.
    apart = sum(abs(a - b) / b for a, b in pairs) / len(pairs)
    context.verdict.expect(apart < 0.01, f"losses are {apart:.2%} from those of two workers, on average")


def _newest_size(run_dir: Path) -> int:
    """Return how many workers the newest group has, as far as they have done a step; 0 for a run's first group."""
    attempts = [path.name.split("-")[0] for path in (run_dir / "samples").glob("*.jsonl") if path.stat().st_size > 0]
    return attempts.count(max(attempts)) if len(set(attempts)) > 1 else 0


def _resized(context: Context) -> None:
    """Stop and go on with 3 workers, which do not divide the batch, then 1, then 2."""
    for step, size in ((4, 2), (8, 3), (16, 1)):
        process = context.job.start(f"--cluster.num_workers={size}")
        context.verdict.expect(context.job.wait_for_step(process, step), f"step {step} was not reached")
        process.send_signal(signal.SIGTERM)
        context.expect_end(context.job.end(process), EXIT_STOPPED)
    context.expect_end(context.job.run("--cluster.num_workers=2"), EXIT_DONE, "resumed from")
    context.judge(tolerance=RESIZED_TOLERANCE)


def _sigterm(context: Context) -> None:
    process = context.job.start()
    context.job.wait_for_step(process, 8)
    process.send_signal(signal.SIGTERM)
    context.expect_end(context.job.end(process), EXIT_STOPPED, "stopping: saving first")
    saved = find_checkpoints(context.run_dir)[0]
    context.verdict.expect(saved.name > checkpoint_name(8), f"nothing was saved after {saved.name}")
    context.expect_end(context.job.run(), EXIT_DONE, f"resumed from {saved.name}")
    context.judge()


def _driver_kill(context: Context) -> None:
    context.stop_at(8)
    context.expect_end(context.job.run(), EXIT_DONE, "resumed from")
    context.judge()


def _disk_full(context: Context) -> None:
    storage = context.job.storage = context.job.storage / f"small-{context.job.name}"
    storage.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={_TMPFS_BYTES}", "tmpfs", str(storage)]
    done = subprocess.run(mount, capture_output=True, text=True)
    if done.returncode:
        context.verdict.failures.append(f"cannot be tried here: {done.stderr.strip()}")
        return
    try:
        process = context.job.start()
        context.job.wait_for_step(process, 8)
        filler = storage / "filler"
        _fill(filler, _LEFT_BYTES)
        _wait(process, lambda: Event.CHECKPOINT_SKIPPED in context.events())
        filler.unlink()
        context.expect_end(context.job.end(process), EXIT_DONE, Event.CHECKPOINT_SKIPPED)
        context.judge()
    finally:
        subprocess.run(["umount", "--lazy", str(storage)], check=True)


def _fill(filler: Path, left_bytes: int) -> None:
    """Fill the storage up to some room, while the run may write too."""
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while (free := shutil.disk_usage(filler).free) > left_bytes:
            file.write(bytes(min(free - left_bytes, 2**20)))


def _nan(context: Context) -> None:
    ended = context.job.run(environment={"RCDIST_FAULT": "nan:batch:9"})
    context.expect_end(ended, EXIT_DONE, "step 9: step_skipped")
    context.expect_metrics(skipped_steps=1.0, rollbacks=0.0)
    context.judge(is_same=False)


def _spike(context: Context) -> None:
    ended = context.job.run("--divergence.max_skipped=1", environment={"RCDIST_FAULT": "spike:batch:19-20"})
    context.expect_end(ended, EXIT_DONE, "step 19: step_skipped", "step 20: rolled_back")
    context.expect_metrics(skipped_steps=2.0, rollbacks=1.0)
    context.verdict.expect(
        context.events() == ["step_skipped", "step_skipped", "rolled_back"], f"events {context.events()}"
    )
    context.judge(is_same=False)


def _diverged(context: Context) -> None:
    settings = ["--divergence.max_skipped=0", "--divergence.max_rollbacks=1"]
    ended = context.job.run(*settings, environment={"RCDIST_FAULT": "spike:batch:18-24"})
    context.expect_end(ended, EXIT_DIVERGED, "divergence.max_rollbacks=1")
    context.verdict.expect(
        context.events() == ["step_skipped", "rolled_back", "step_skipped", "diverged"], f"events {context.events()}"
    )


def _mlflow_down(context: Context) -> None:
    server = MlflowServer(context.job.storage / f"server-{context.job.name}")
    server.start()
    try:
        context.job.arguments = [*context.job.arguments, f"--tracking.uri={server.uri}"]
        process = context.job.start()
        context.job.wait_for_step(process, 4)
        server.kill()
        context.job.wait_for_step(process, 16)
        server.start()
        context.expect_end(context.job.end(process), EXIT_DONE)
        context.job.run()  # completes the record, should the run have ended before the server was back
        context.judge()
    finally:
        server.kill()


def _budget(context: Context) -> None:
    spent = MetricsLog(context.unbroken.run_dir).read()[7].metrics["cost/device_s"]
    ended = context.job.run(f"--cost.budget_device_s={spent / 2}")
    context.expect_end(ended, EXIT_BUDGET, "cost.budget_device_s", "the checkpoint of that step is saved")
    again = context.job.run(f"--cost.budget_device_s={spent / 2}")
    context.expect_end(again, EXIT_BUDGET, "Raise it to go on")
    context.expect_end(context.job.run(), EXIT_DONE, "resumed from")
    context.judge()


def _small_store(context: Context) -> None:
    """Fill the object store twice over, so that the bank and all that Ray sends are spilled to disk and read back."""
    fill = "import ray, numpy as np, time; ray.init(logging_level='ERROR')\n"
    fill += "kept = [ray.put(np.zeros(20_000_000, np.uint8)) for _ in range(10)]; print('full', flush=True)\n"
    fill += "time.sleep(600)"
    filler = context.job.python(fill)
    try:
        assert filler.stdout is not None
        context.verdict.expect("full" in filler.stdout.readline(), "the object store could not be filled")
        context.expect_end(context.job.run(), EXIT_DONE)
        context.judge()
    finally:
        filler.kill()
        filler.communicate()


def _killed(place: str, rank: int = 0) -> Callable[[Context], None]:
    return _kill_worker(f"kill:{place}:8:{rank}" if place == "saving" else f"kill:{place}:10:{rank}")


_GOES_ON = "goes on from the newest checkpoint; exit code 0, losses bit for bit"
FAULTS = {
    "kill-forward": Fault("a worker is killed before its forward pass", _GOES_ON, _killed("forward", 1)),
    "kill-optimizer": Fault("a worker is killed in the optimizer's step", _GOES_ON, _killed("optimizer")),
    "kill-saving": Fault("a worker is killed while it saves", _GOES_ON, _killed("saving")),
    "node-loss": Fault("a node is killed, and another one comes", _GOES_ON, _node_loss, nodes=1),
    "shrunk": Fault(
        "num_workers=[1,2]: a node is killed, and none comes", "goes on with 1 worker, losses within 0.2 %", _shrunk, 1
    ),
    "preemption": Fault(
        "notice that a node is taken away, then it is", "saves at once, goes on elsewhere, no failure", _preemption, 1
    ),
    "sigterm": Fault("SIGTERM to the job", "saves at once, exit code 143; the same command goes on", _sigterm),
    "driver-kill": Fault("the job's driver is killed", "the same command goes on, losses bit for bit", _driver_kill),
    "elastic": Fault(
        "num_workers=[1,2]: a node is killed, later one comes", "2, 1, 2 workers in one job, exit code 0", _elastic, 1
    ),
    "resized": Fault("the job is continued with 3, 1, 2 workers", "same data, losses within 0.2 %", _resized, nodes=3),
    "disk-full": Fault("the storage is full for a while", "goes on without that checkpoint, exit code 0", _disk_full),
    "nan-batch": Fault("a batch with a loss that is NaN", "the update is skipped, exit code 0", _nan),
    "loss-spike": Fault("batches with a loss 50 times too high", "skipped, then taken back, exit code 0", _spike),
    "diverged": Fault("the loss stays too high", "taken back as often as allowed, then exit code 5", _diverged),
    "mlflow-down": Fault("the MLflow server is down for a while", "exit code 0, and its record is whole", _mlflow_down),
    "small-store": Fault(
        "the object store is full", "Ray spills to disk, exit code 0", _small_store, 2, object_store_bytes=80_000_000
    ),
    "budget": Fault("the budget is used up", "saves, exit code 4; with more the same command goes on", _budget),
} | {name: Fault(what, end, run) for name, (what, end, run) in DAMAGES.items()}
"""Every fault by its name."""
