"""The faults by name: what each does to a run, and how the run must end."""

import contextlib
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rcdist.chaos.damage import DAMAGES
from rcdist.chaos.scene import Scene
from rcdist.chaos.server import MlflowServer
from rcdist.chaos.verdict import RESIZED_TOLERANCE
from rcdist.errors import EXIT_BUDGET, EXIT_DIVERGED, EXIT_DONE, EXIT_STOPPED
from rcdist.tracking.jsonl import MetricsLog
from rcdist.train.checkpoint import checkpoint_name, find_checkpoints
from rcdist.train.samples import read_samples

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
        run: does it, and notes in the scene's verdict what is not as it should be.
        nodes: CPU slots of the cluster's head, where the fault needs a cluster of its own; None: any will do.
        object_store_bytes: of that cluster's nodes.
    """

    what: str
    end: str
    run: Callable[[Scene], None]
    nodes: int | None = None
    object_store_bytes: int = 200_000_000


def _kill_worker(fault: str) -> Callable[[Scene], None]:
    def run(scene: Scene) -> None:
        ended = scene.stage.run(environment={"RCDIST_FAULT": fault})
        scene.expect_end(ended, EXIT_DONE, "resumed from")
        scene.verdict.expect(len(read_samples(scene.run_dir)) == 2, "the workers were not started twice")
        scene.judge()

    return run


def _node_loss(scene: Scene) -> None:
    node = scene.cluster.add_node(1)
    process = scene.stage.start()
    scene.verdict.expect(scene.stage.wait_for_step(process, 8), "step 8 was not reached")
    scene.cluster.kill_node(node)
    scene.cluster.add_node(1)
    scene.expect_end(scene.stage.end(process), EXIT_DONE, "resumed from")
    scene.judge()


def _shrunk(scene: Scene) -> None:
    node = scene.cluster.add_node(1)
    elastic = ["--cluster.num_workers=[1,2]", "--cluster.start_timeout_s=5"]
    process = scene.stage.start(*elastic)
    scene.verdict.expect(scene.stage.wait_for_step(process, 8), "step 8 was not reached")
    scene.cluster.kill_node(node)
    scene.expect_end(scene.stage.end(process), EXIT_DONE, "resumed from")
    scene.judge(*elastic, tolerance=RESIZED_TOLERANCE)


def _preemption(scene: Scene) -> None:
    node = scene.cluster.add_node(1)
    # No failure is allowed: pre-emption with notice is none. No checkpoint is due: the one there is, the notice made.
    settings = [*_LONG, "--cluster.max_failures=0", "--checkpoint.every_steps=null"]
    process = scene.stage.start(*settings)
    _wait(process, lambda: bool(MetricsLog(scene.run_dir).read()))
    scene.cluster.drain_other(deadline_s=12)
    scene.verdict.expect(_wait(process, lambda: bool(find_checkpoints(scene.run_dir))), "the notice saved nothing")
    scene.cluster.add_node(1)
    # The cloud takes the machine away when the time is over; Ray has moved the workers by then.
    scene.verdict.expect(_wait(process, lambda: _newest_size(scene.run_dir) == 2), "training did not go on elsewhere")
    scene.cluster.kill_node(node)
    scene.expect_end(scene.stage.end(process), EXIT_DONE, "a node is about to be taken away", "resumed from")
    scene.judge(*settings, is_same=False)


def _wait(process: subprocess.Popen[str], holds: Callable[[], bool], timeout_s: float = 150.0) -> bool:
    """Wait while the job runs; say whether it came to hold."""
    deadline = time.monotonic() + timeout_s
    while not (held := holds()) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    return held


def _elastic(scene: Scene) -> None:
    """2 workers, one node lost, 1 worker, a node comes, 2 workers: in one job that never ends meanwhile."""
    node = scene.cluster.add_node(1)
    long = [*_LONG, "--checkpoint.every_steps=50"]
    elastic = ["--cluster.num_workers=[1,2]", "--cluster.resize_interval_s=2", "--cluster.start_timeout_s=15"]
    process = scene.stage.start(*long, *elastic)
    scene.verdict.expect(scene.stage.wait_for_step(process, 100), "step 100 was not reached")
    scene.cluster.kill_node(node)
    scene.verdict.expect(
        _wait(process, lambda: _newest_size(scene.run_dir) == 1), "training did not go on with one worker"
    )
    scene.cluster.add_node(1)
    scene.verdict.expect(
        _wait(process, lambda: _newest_size(scene.run_dir) == 2), "training did not go on with two workers again"
    )
    scene.expect_end(scene.stage.end(process), EXIT_DONE)
    scene.judge(*long, is_same=False, tolerance=_GROWN_TOLERANCE)
    broken = MetricsLog(scene.run_dir).read()
    scene.stage.name += "-unbroken"
    scene.expect_end(scene.stage.run(*long), EXIT_DONE)
    whole = MetricsLog(scene.run_dir).read()
    pairs = [(a.metrics["train/loss_nats"], b.metrics["train/loss_nats"]) for a, b in zip(broken, whole, strict=True)]
    # Rounding to ternary makes the small difference of a resize grow, batch by batch up or down.
    apart = sum(abs(a - b) / b for a, b in pairs) / len(pairs)
    scene.verdict.expect(apart < 0.01, f"losses are {apart:.2%} from those of two workers, on average")


def _newest_size(run_dir: Path) -> int:
    """Return how many workers the newest group has, as far as they have done a step; 0 for a run's first group."""
    attempts = [path.name.split("-")[0] for path in (run_dir / "samples").glob("*.jsonl") if path.stat().st_size > 0]
    return attempts.count(max(attempts)) if len(set(attempts)) > 1 else 0


def _resized(scene: Scene) -> None:
    """Stop and go on with 3 workers, which do not divide the batch, then 1, then 2."""
    for step, size in ((4, 2), (8, 3), (16, 1)):
        process = scene.stage.start(f"--cluster.num_workers={size}")
        scene.verdict.expect(scene.stage.wait_for_step(process, step), f"step {step} was not reached")
        process.send_signal(signal.SIGTERM)
        scene.expect_end(scene.stage.end(process), EXIT_STOPPED)
    scene.expect_end(scene.stage.run("--cluster.num_workers=2"), EXIT_DONE, "resumed from")
    scene.judge(tolerance=RESIZED_TOLERANCE)


def _sigterm(scene: Scene) -> None:
    process = scene.stage.start()
    scene.stage.wait_for_step(process, 8)
    process.send_signal(signal.SIGTERM)
    scene.expect_end(scene.stage.end(process), EXIT_STOPPED, "stopping: saving first")
    saved = find_checkpoints(scene.run_dir)[0]
    scene.verdict.expect(saved.name > checkpoint_name(8), f"nothing was saved after {saved.name}")
    scene.expect_end(scene.stage.run(), EXIT_DONE, f"resumed from {saved.name}")
    scene.judge()


def _driver_kill(scene: Scene) -> None:
    scene.stop_at(8)
    scene.expect_end(scene.stage.run(), EXIT_DONE, "resumed from")
    scene.judge()


def _disk_full(scene: Scene) -> None:
    storage = scene.stage.storage = scene.stage.storage / f"small-{scene.stage.name}"
    storage.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={_TMPFS_BYTES}", "tmpfs", str(storage)]
    done = subprocess.run(mount, capture_output=True, text=True)
    if done.returncode:
        scene.verdict.failures.append(f"cannot be tried here: {done.stderr.strip()}")
        return
    try:
        process = scene.stage.start()
        scene.stage.wait_for_step(process, 8)
        filler = storage / "filler"
        _fill(filler, _LEFT_BYTES)
        _wait(process, lambda: "not saved" in scene.events())
        filler.unlink()
        scene.expect_end(scene.stage.end(process), EXIT_DONE, "not saved")
        scene.judge()
    finally:
        subprocess.run(["umount", "--lazy", str(storage)], check=True)


def _fill(filler: Path, left_bytes: int) -> None:
    """Take all the room but some, of which the run may take a part at the same time."""
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while (free := shutil.disk_usage(filler).free) > left_bytes:
            file.write(bytes(min(free - left_bytes, 2**20)))


def _nan(scene: Scene) -> None:
    ended = scene.stage.run(environment={"RCDIST_FAULT": "nan:batch:9"})
    scene.expect_end(ended, EXIT_DONE, "step 9: skipped")
    scene.expect_metrics(skipped_steps=1.0, rollbacks=0.0)
    scene.judge(is_same=False)


def _spike(scene: Scene) -> None:
    ended = scene.stage.run("--divergence.max_skipped=1", environment={"RCDIST_FAULT": "spike:batch:19-20"})
    scene.expect_end(ended, EXIT_DONE, "step 19: skipped", "step 20: roll_back", "step 20: went back")
    scene.expect_metrics(skipped_steps=2.0, rollbacks=1.0)
    scene.verdict.expect(scene.events() == ["skipped", "roll_back", "went back"], f"events {scene.events()}")
    scene.judge(is_same=False)


def _diverged(scene: Scene) -> None:
    settings = ["--divergence.max_skipped=0", "--divergence.max_rollbacks=1"]
    ended = scene.stage.run(*settings, environment={"RCDIST_FAULT": "spike:batch:18-24"})
    scene.expect_end(ended, EXIT_DIVERGED, "divergence.max_rollbacks=1")
    scene.verdict.expect(scene.events() == ["roll_back", "went back", "stop"], f"events {scene.events()}")


def _mlflow_down(scene: Scene) -> None:
    server = MlflowServer(scene.stage.storage / f"server-{scene.stage.name}")
    server.start()
    try:
        scene.stage.arguments = [*scene.stage.arguments, f"--tracking.uri={server.uri}"]
        process = scene.stage.start()
        scene.stage.wait_for_step(process, 4)
        server.kill()
        scene.stage.wait_for_step(process, 16)
        server.start()
        scene.expect_end(scene.stage.end(process), EXIT_DONE)
        scene.stage.run()  # completes the record, should the run have ended before the server was back
        scene.judge()
    finally:
        server.kill()


def _budget(scene: Scene) -> None:
    spent = MetricsLog(scene.unbroken.run_dir).read()[7].metrics["cost/device_s"]
    ended = scene.stage.run(f"--cost.budget_device_s={spent / 2}")
    scene.expect_end(ended, EXIT_BUDGET, "cost.budget_device_s", "the checkpoint of that step is saved")
    again = scene.stage.run(f"--cost.budget_device_s={spent / 2}")
    scene.expect_end(again, EXIT_BUDGET, "Raise it to go on")
    scene.expect_end(scene.stage.run(), EXIT_DONE, "resumed from")
    scene.judge()


def _small_store(scene: Scene) -> None:
    """Fill the object store twice over, so that the bank and all that Ray sends are spilled to disk and read back."""
    fill = "import ray, numpy as np, time; ray.init(logging_level='ERROR')\n"
    fill += "kept = [ray.put(np.zeros(20_000_000, np.uint8)) for _ in range(10)]; print('full', flush=True)\n"
    fill += "time.sleep(600)"
    filler = scene.stage.python(fill)
    try:
        assert filler.stdout is not None
        scene.verdict.expect("full" in filler.stdout.readline(), "the object store could not be filled")
        scene.expect_end(scene.stage.run(), EXIT_DONE)
        scene.judge()
    finally:
        filler.kill()
        filler.communicate()


def _killed(place: str, rank: int = 0) -> Callable[[Scene], None]:
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
