"""Turn a JobConfig into a finished run: check everything, prepare the data, start Ray Train, follow it, close the record."""

import json
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from rcdist.config import JobConfig
from rcdist.preflight import check_config, find_resume
from rcdist.workers import Workers, ray_session, resolve_workers, worker_environment

_POLL_S = 0.2


def fit(config: JobConfig, payload: dict[str, Any], workers: Workers) -> None:
    """Run Ray Train to the end; blocks.

    Raises:
        ray.train.TrainingFailedError: a worker or the controller failed.
    """
    import ray.train
    from ray.train.torch import TorchConfig, TorchTrainer

    from rcdist.train.loop import train_loop_per_worker
    from rcdist.train.report import RecordKeeper

    # The controller polls workers at this interval; its default of 2 s delays every record and the end of a run.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", str(config.cluster.start_timeout_s))
    # Ray's list of earlier checkpoints names those that retention has deleted; the folders themselves are the truth.
    (config.run_dir / "checkpoint_manager_snapshot.json").unlink(missing_ok=True)
    resources = {"CPU": workers.cpus_per_worker} | ({"GPU": 1.0} if workers.use_gpu else {})
    trainer = TorchTrainer(
        train_loop_per_worker,
        train_loop_config=payload,
        torch_config=TorchConfig(backend="nccl" if workers.use_gpu else "gloo"),
        scaling_config=ray.train.ScalingConfig(
            num_workers=workers.num_workers, use_gpu=workers.use_gpu, resources_per_worker=resources
        ),
        run_config=ray.train.RunConfig(
            name=config.name,
            storage_path=str(config.run_dir.parent),
            callbacks=[RecordKeeper(config.run_dir, config.checkpoint.keep_latest)],
            worker_runtime_env={"env_vars": worker_environment(workers)},
            logging_config=ray.train.LoggingConfig(log_level="WARNING"),
        ),
    )
    trainer.fit()


def follow(work: Callable[[], None], poll: Callable[[], None]) -> None:
    """Run `work` in a thread and `poll` in this one until it ends, then once more; re-raise what `work` raised.

    The main thread stays free for signals: Ctrl-C and SIGTERM take effect at once, and Ray installs no handler of its own.
    """
    failure: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=run, daemon=True, name="fit")
    thread.start()
    while thread.is_alive():
        poll()
        time.sleep(_POLL_S)
    poll()
    if failure:
        raise failure[0]


def write_resolved_config(config: JobConfig) -> Path:
    """Write the resolved configuration into the run's folder and return its path."""
    config.run_dir.mkdir(parents=True, exist_ok=True)
    path = config.run_dir / "config.yaml"
    path.write_text(yaml.safe_dump(json.loads(config.model_dump_json()), sort_keys=False))
    return path
