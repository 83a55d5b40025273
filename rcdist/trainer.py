"""Run Ray Train from the driver: start it, follow it, and keep what its controller receives from the workers."""

import contextlib
import ctypes
import gc
import logging
import math
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray.train
from ray.train import Checkpoint, UserCallback

from rcdist.cluster import Workers, set_timeouts, worker_environment
from rcdist.config import JobConfig
from rcdist.errors import RcdistError, RetriesError
from rcdist.exits import find_cause
from rcdist.storage import try_write
from rcdist.tracking.jsonl import MetricsLog
from rcdist.tracking.provenance import redact

if TYPE_CHECKING:
    from rcdist.train.payload import Payload

logger = logging.getLogger("rcdist")

_POLL_S = 0.2
_M_ARENA_MAX = -8
"""Number of heaps, by its name in malloc.h."""


class RecordKeeper(UserCallback):
    """Append rank 0's record to metrics.jsonl.

    It runs in Ray Train's controller, which Ray places on the driver's node, and outlives the workers. The driver reads
    the file and passes it on to MLflow: nothing here waits for a server.

    Args:
        run_dir: folder of the run.
    """

    def __init__(self, run_dir: Path) -> None:
        self._log = MetricsLog(run_dir)

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Checkpoint | None) -> None:
        """Keep one record; Ray calls it once all workers have reported."""
        self._log.append_record(metrics[0])


def fit(payload: "Payload", workers: Workers, callbacks: Sequence[UserCallback] = ()) -> None:
    """Run Ray Train to the end; blocks.

    Raises:
        RetriesError: workers failed more often than `cluster.max_failures`.
        ray.train.TrainingFailedError: carries a RcdistError of a worker.
    """
    # Not above: the controller imports this file for RecordKeeper, and has no use for torch (3 s).
    from ray.train.torch import TorchConfig, TorchTrainer

    from rcdist.train.loop import train_loop_per_worker

    config = payload.config
    set_timeouts(config, workers)
    # Workers complete their checkpoints themselves. Ray's list of them, which earlier versions left, would be read.
    (config.run_dir / "checkpoint_manager_snapshot.json").unlink(missing_ok=True)
    most = workers.num_workers
    trainer = TorchTrainer(
        train_loop_per_worker,
        train_loop_config={"payload": payload},
        torch_config=TorchConfig(
            backend="nccl" if workers.use_gpu else "gloo", timeout_s=math.ceil(config.cluster.hang_timeout_s)
        ),
        scaling_config=ray.train.ScalingConfig(
            num_workers=(workers.min_workers, most) if workers.min_workers else most,
            use_gpu=workers.use_gpu,
            resources_per_worker={"CPU": workers.cpus_per_worker} | ({"GPU": 1.0} if workers.use_gpu else {}),
            elastic_resize_monitor_interval_s=config.cluster.resize_interval_s,
        ),
        run_config=ray.train.RunConfig(
            name=config.name,
            storage_path=config.bucket.path("runs") if config.bucket else str(config.run_dir.parent),
            storage_filesystem=config.bucket.filesystem if config.bucket else None,
            callbacks=[RecordKeeper(config.run_dir), *callbacks],
            # Ray counts pre-emption with notice apart, and retries after it without limit.
            failure_config=ray.train.FailureConfig(max_failures=config.cluster.max_failures),
            worker_runtime_env={"env_vars": worker_environment(workers)},
            # At WARNING it prints a traceback for every worker that was lost, besides the line that says so.
            logging_config=ray.train.LoggingConfig(log_level="ERROR"),
        ),
    )
    try:
        trainer.fit()
    except ray.train.TrainingFailedError as error:
        if find_cause(error) is not None:
            raise
        raise _retries_error(config, error) from error


def fit_here(payload: "Payload", workers: Workers) -> None:
    """Train in this process, as the only worker, by Ray Train's local mode; blocks.

    What a worker costs to start (6 to 15 s: a process, its imports, its group) is paid once per process.

    Raises:
        RetriesError: it failed more often than `cluster.max_failures`.
        RcdistError: of the worker.
    """
    import torch.distributed as dist
    from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

    from rcdist.train.loop import train_loop_per_worker

    os.environ.update(worker_environment(workers) | {"LOCAL_RANK": "0", "RANK": "0", "WORLD_SIZE": "1"})
    if not dist.is_initialized():
        # It stays for the next run of this process: DeepSpeed keeps the first group it sees.
        store = dist.HashStore()
        dist.init_process_group("nccl" if workers.use_gpu else "gloo", store=store, rank=0, world_size=1)
    trainer = DataParallelTrainer(
        train_loop_per_worker,
        train_loop_config={"payload": payload},
        scaling_config=ray.train.ScalingConfig(num_workers=0),
        run_config=ray.train.RunConfig(name=payload.config.name, storage_path=str(payload.config.run_dir.parent)),
    )
    failures = 0
    while True:
        try:
            trainer.fit()
            return
        except RcdistError:
            raise
        except Exception as error:
            failures += 1
            if 0 <= payload.config.cluster.max_failures < failures:
                raise _retries_error(payload.config, error) from error
        finally:
            _free_memory()


def _free_memory() -> None:
    """Give back what a run in this process has used."""
    gc.collect()  # engine and model refer to one another
    with contextlib.suppress(OSError, AttributeError):  # another libc
        libc = ctypes.CDLL("libc.so.6")
        # Each run has a thread of its own, and each thread would get a heap of its own, which keeps what it held.
        libc.mallopt(_M_ARENA_MAX, 1)
        libc.malloc_trim(0)


def _retries_error(config: JobConfig, error: Exception) -> RetriesError:
    report = config.run_dir / "failure.txt"
    try_write(report, redact("".join(traceback.format_exception(error))))
    return RetriesError(
        "cluster.max_failures",
        config.cluster.max_failures,
        f"the workers failed once more, the last time with: {_last_line(error)}",
        f"Read {report}; the same command goes on from the newest checkpoint",
    )


def _last_line(error: BaseException) -> str:
    """Return the line of a worker's traceback that names its error."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


def follow(
    work: Callable[[], None],
    poll: Callable[[], None],
    *,
    request_stop: Callable[[], None] = lambda: None,
    grace_s: float = 0.0,
) -> None:
    """Run `work` in a thread and `poll` in this one until it ends, then once more; re-raise what `work` raised.

    The main thread stays free for signals: Ctrl-C and SIGTERM take effect at once, and Ray installs no handler of its
    own. They first call `request_stop` and give `work` grace_s seconds to end by itself; a second signal does not wait.
    """
    failure: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=run, daemon=True, name="fit")
    thread.start()
    try:
        while thread.is_alive():
            poll()
            time.sleep(_POLL_S)
    except (KeyboardInterrupt, SystemExit):
        # Ray's native handler of SIGTERM has set an alarm that aborts the process 3 s later, whatever it is doing.
        signal.alarm(0)
        if grace_s > 0:
            logger.info("stopping: saving first, %g s at most; the same signal once more: at once", grace_s)
            request_stop()
            deadline = time.monotonic() + grace_s
            while thread.is_alive() and time.monotonic() < deadline:
                poll()
                time.sleep(_POLL_S)
            poll()
        raise
    poll()
    if failure:
        raise failure[0]
