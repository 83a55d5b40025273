"""The faults by name: what each does to a run, and how the run must end."""

import signal
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from rcdist.chaos.context import Context
from rcdist.chaos.damage import DAMAGES
from rcdist.chaos.disk import fill, small_disk
from rcdist.chaos.job import STEPS
from rcdist.chaos.mlflow_server import MlflowServer
from rcdist.chaos.nodes import elastic, node_loss, preemption, resized, shrunk
from rcdist.chaos.verdict import RESIZED_TOLERANCE
from rcdist.checkpoint.find import checkpoint_name, find_checkpoints, step_of
from rcdist.errors import EXIT_BAD_CONFIG, EXIT_BUDGET, EXIT_DIVERGED, EXIT_DONE, EXIT_STOPPED
from rcdist.tracking.jsonl import MetricsLog
from rcdist.train.events import Event

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


def _kill_worker(*faults: str) -> Callable[[Context], None]:
    def run(context: Context) -> None:
        ended = context.job.run(environment={"RCDIST_FAULT": ",".join(faults)})
        context.expect_end(ended, EXIT_DONE)
        happened = sorted(path.name for path in context.run_dir.glob("fault-*-happened"))
        context.verdict.expect(len(happened) == len(faults), f"of {faults} happened {happened}")
        context.judge()

    return run


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


def _disk_full(context: Context, left_bytes: int) -> None:
    with small_disk(context.job):
        process = context.job.start()
        context.job.wait_for_step(process, 8)
        filler = context.job.storage / "filler"
        fill(filler, left_bytes)
        # With no byte free the event is printed, and waits for room to be written down.
        context.wait(process, lambda: Event.CHECKPOINT_SKIPPED in context.job.output())
        filler.unlink()
        context.expect_end(context.job.end(process), EXIT_DONE, Event.CHECKPOINT_SKIPPED)
        context.verdict.expect(Event.CHECKPOINT_SKIPPED in context.events(), "the event is not in its file")
        context.judge()


def _full_in_a_shard(context: Context) -> None:
    ended = context.job.run(environment={"RCDIST_FAULT": "full:shard:8:1"})
    context.expect_end(ended, EXIT_DONE, "step 8: checkpoint_skipped", "cannot be written: rank 1")
    context.judge()
    context.job.name += "-last"
    ended = context.job.run(environment={"RCDIST_FAULT": "full:shard:24"})
    context.expect_end(ended, EXIT_BAD_CONFIG, "the checkpoint of step 24 cannot be saved", "Make room")
    context.expect_end(context.job.run(), EXIT_DONE, "resumed from step-00000020")
    context.judge()


def _kill_resizing(context: Context) -> None:
    """Go on with one worker after two, and kill it when it has converted the checkpoint, and again the next one."""
    process = context.job.start()
    context.verdict.expect(context.job.wait_for_step(process, 8), "step 8 was not reached")
    process.send_signal(signal.SIGTERM)
    context.expect_end(context.job.end(process), EXIT_STOPPED)
    step = step_of(find_checkpoints(context.run_dir)[0])
    fault = f"kill:resize:{step},kill:restore:{step}"
    ended = context.job.run("--cluster.num_workers=1", environment={"RCDIST_FAULT": fault})
    context.expect_end(ended, EXIT_DONE, "resumed from")
    happened = [path.name for path in context.run_dir.glob("fault-*-happened")]
    context.verdict.expect(happened == ["fault-0-happened"], f"happened: {happened}")
    context.judge(tolerance=RESIZED_TOLERANCE)


_ALL_KEPT = "--checkpoint.keep_latest=30"


def _nan(context: Context) -> None:
    settings = ["--checkpoint.every_steps=1", _ALL_KEPT]
    ended = context.job.run(*settings, environment={"RCDIST_FAULT": "nan:batch:9"})
    context.expect_end(ended, EXIT_DONE, "step 9: step_skipped")
    context.expect_metrics(skipped_steps=1.0, rollbacks=0.0)
    context.judge(until=8)
    context.expect_same_tensors(9, 8)


def _spike(context: Context) -> None:
    fault = {"RCDIST_FAULT": "spike:batch:19-20"}
    ended = context.job.run("--divergence.max_skipped=1", _ALL_KEPT, environment=fault)
    context.expect_end(ended, EXIT_DONE, "step 19: step_skipped", "step 20: rolled_back")
    context.expect_metrics(skipped_steps=2.0, rollbacks=1.0)
    context.verdict.expect(
        context.events() == ["step_skipped", "step_skipped", "rolled_back"], f"events {context.events()}"
    )
    context.judge(until=18)
    context.expect_same_tensors(20, 16)


def _kill_rolling_back(context: Context) -> None:
    fault = {"RCDIST_FAULT": "spike:batch:19-20,kill:rollback:20"}
    ended = context.job.run("--divergence.max_skipped=1", _ALL_KEPT, environment=fault)
    context.expect_end(ended, EXIT_DONE, "resumed from step-00000016", "step 20: rolled_back")
    context.expect_metrics(skipped_steps=2.0, rollbacks=1.0)
    context.judge(until=18)
    context.expect_same_tensors(20, 16)


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


_WITHOUT = "goes on without that checkpoint, exit code 0"
_GOES_ON = "goes on from the newest checkpoint; exit code 0, losses bit for bit"
FAULTS = {
    "kill-forward": Fault("a worker is killed before its forward pass", _GOES_ON, _kill_worker("kill:forward:10:1")),
    "kill-optimizer": Fault("a worker is killed in the optimizer's step", _GOES_ON, _kill_worker("kill:optimizer:10")),
    "kill-first-save": Fault("a worker is killed in the first save", _GOES_ON, _kill_worker("kill:saving:4")),
    "kill-saving": Fault("a worker is killed in a later save", _GOES_ON, _kill_worker("kill:saving:8:1")),
    "kill-last-save": Fault("a worker is killed in the last save", _GOES_ON, _kill_worker(f"kill:saving:{STEPS}")),
    "kill-shard": Fault("a worker is killed in the middle of a shard", _GOES_ON, _kill_worker("kill:shard:8:1")),
    "kill-twice": Fault(
        "a worker is killed, and in its place another",
        _GOES_ON,
        _kill_worker("kill:forward:10", "kill:forward:10:1"),
    ),
    "kill-restoring": Fault(
        "a worker is killed, then one that goes on", _GOES_ON, _kill_worker("kill:forward:10", "kill:restore:8:1")
    ),
    "kill-rolling-back": Fault(
        "a worker is killed when training goes back", "goes back again; exit code 0", _kill_rolling_back
    ),
    "kill-resizing": Fault(
        "a worker is killed when it has read another number's", "reads it again, losses within 0.2 %", _kill_resizing
    ),
    "node-loss": Fault("a node is killed, and another one comes", _GOES_ON, node_loss, nodes=1),
    "shrunk": Fault(
        "num_workers=[1,2]: a node is killed, and none comes", "goes on with 1 worker, losses within 0.2 %", shrunk, 1
    ),
    "preemption": Fault(
        "notice that a node is taken away, then it is", "saves at once, goes on elsewhere, no failure", preemption, 1
    ),
    "sigterm": Fault("SIGTERM to the job", "saves at once, exit code 143; the same command goes on", _sigterm),
    "driver-kill": Fault("the job's driver is killed", "the same command goes on, losses bit for bit", _driver_kill),
    "elastic": Fault(
        "num_workers=[1,2]: a node is killed, later one comes",
        "2, 1, 2 workers in one job, each part as if so many had gone on from there, bit for bit",
        elastic,
        1,
    ),
    "elastic-8": Fault(
        "num_workers=[1,8]: a node with two is killed, later one comes",
        "8, 6, 8 workers in one job, each part as if so many had gone on from there, bit for bit",
        partial(elastic, kept=6, lost=2, steps=300),
        6,
    ),
    "resized": Fault("the job is continued with 3, 1, 2 workers", "same data, losses within 0.2 %", resized, nodes=3),
    "disk-low": Fault(
        "the storage has no room for a checkpoint for a while", _WITHOUT, partial(_disk_full, left_bytes=_LEFT_BYTES)
    ),
    "disk-full": Fault("the storage has no byte free for a while", _WITHOUT, partial(_disk_full, left_bytes=0)),
    "full-in-a-shard": Fault(
        "the storage is full in the middle of a shard", f"{_WITHOUT}; at the end exit code 2", _full_in_a_shard
    ),
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
