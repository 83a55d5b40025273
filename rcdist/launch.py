"""Turn a JobConfig into a finished run: check everything, prepare the data, start Ray Train, follow it, close it."""

import math
import signal
import threading
import time
import traceback
from collections.abc import Callable
from typing import Any

import torch

from rcdist.cli import dump_config, find_cause
from rcdist.config import JobConfig
from rcdist.data.prepare import PreparedData, prepare_corpora
from rcdist.errors import EXIT_DONE, BudgetError, RetriesError
from rcdist.estimate import describe_cost, format_cost
from rcdist.model.cost import ParameterCounts, count_parameters
from rcdist.model.reservoir import build_bank
from rcdist.model.spectrum import measure_reservoirs
from rcdist.ops import native
from rcdist.plan import RESERVOIR_LETTER
from rcdist.preflight import Resume, check_config, check_data, describe_run, find_resume
from rcdist.record import (
    append_yardsticks,
    complete_record,
    read_record_state,
    summarise,
    write_record_state,
)
from rcdist.tracking.jsonl import MetricsLog
from rcdist.tracking.mlflow import check_server, start_or_continue
from rcdist.tracking.prices import PriceRow, resolve_price
from rcdist.tracking.progress import Progress
from rcdist.tracking.provenance import redact
from rcdist.tracking.tracker import RunStatus, Tracker, reconcile
from rcdist.train.events import EVENTS
from rcdist.train.stop import clear_stop, read_stop, request_stop
from rcdist.workers import Workers, gpu_name, is_local, ray_session, resolve_workers, set_timeouts, worker_environment

_POLL_S = 0.2


def launch(config: JobConfig) -> int:
    """Run, or continue, one pre-training job and return its exit code.

    Nothing is written into the run's folder, and no worker is asked for, before every setting, the storage, the
    checkpoint that may be there, the tracking server and the corpora have been found right.

    Raises:
        RcdistError: what is wrong, with its exit code.
        ray.train.TrainingFailedError: the workers failed.
    """
    began = time.monotonic()
    check_config(config)
    # Workers run in folders of their own: the path must not depend on where the job was started.
    config = config.model_copy(update={"storage_path": str(config.storage.resolve())})
    resume = find_resume(config)
    check_server(config.tracking_uri, config.tracking.experiment, config.tracking.timeout_s)
    if resume and resume.manifest.step >= config.train.steps:
        complete_record(config, resume.manifest)
        print(
            f"run {config.name!r} has all {resume.manifest.step} steps in {resume.folder}. "
            "To go on, raise train.steps; to start again, choose another name."
        )
        return EXIT_DONE
    counts = count_parameters(config.model, config.reservoir)
    if is_local(config) and not torch.cuda.is_available():
        # The workers need the kernels: compiled while Ray starts and the corpora are tokenised.
        threading.Thread(target=native.is_available, daemon=True, name="compile").start()
    with ray_session(config):
        workers = resolve_workers(config)
        price = resolve_price(config.cost, gpu_name() if workers.use_gpu else None, config.cluster.cpus_per_worker)
        data = prepare_corpora(config)
        if resume:
            check_data(resume, data)
        print(describe_run(config, workers, counts, data, price), flush=True)
        return _run(config, resume, workers, counts, data, price, began)


def _run(
    config: JobConfig,
    resume: Resume | None,
    workers: Workers,
    counts: ParameterCounts,
    data: PreparedData,
    price: PriceRow,
    began: float,
) -> int:
    import ray

    config.run_dir.mkdir(parents=True, exist_ok=True)
    (config.run_dir / "config.yaml").write_text(redact(dump_config(config)))
    cost_file = config.run_dir / "cost.txt"
    cost_file.write_text(format_cost(config) + "\n")
    bank = build_bank(config.model, config.reservoir)
    packed = bank.pack()
    # Of inputs and readouts it says nothing; where W_r acts on the states it is what decides over their memory.
    measured = measure_reservoirs(bank, RESERVOIR_LETTER) if _acts_on_states(config) else {}
    if measured:
        radii = ", ".join(f"{key} {radius:.3f}" for key, radius in measured.items())
        print(f"measured spectral radius: {radii}", flush=True)
    log = MetricsLog(config.run_dir)
    is_own = resume is not None and resume.folder.parent == config.run_dir
    log.truncate_after(resume.manifest.step if resume and is_own else 0)
    if resume and is_own:
        log.complete(resume.manifest.records)
    tracker = start_or_continue(
        config.tracking_uri,
        config.tracking.experiment,
        config.name,
        read_record_state(config.run_dir).get("mlflow_run_id"),
        config=config.model_dump(mode="json"),
        facts={
            "cost": {key: value for key, value in describe_cost(config).items() if key != "matrices"},
            "data": {"train_digest": data.train.digest, "validation_digest": data.validation.digest},
            "tokenizer_digest": data.tokenizer_digest,
            "reservoir_digest": packed.digest,
            "reservoir_spectral_radius": measured,
            "workers": vars(workers),
        },
        tags={"plan": config.reservoir.plan},
        timeout_s=config.tracking.timeout_s,
    )
    tracker.log_artifact(cost_file)
    write_record_state(config.run_dir, tracker.run_id, is_complete=False)
    payload = {
        "config": config.model_dump(mode="json"),
        "bank_ref": ray.put(packed) if config.reservoir.source == "broadcast" else None,
        "bank_digest": packed.digest,
        "train_corpus": data.train,
        "validation_corpus": data.validation,
        "tokenizer_dir": data.tokenizer_dir,
        "tokenizer_digest": data.tokenizer_digest,
        "price": price,
        "mlflow_run_id": tracker.run_id,
        "began": time.time() - (time.monotonic() - began),
        "resume_from": resume.folder if resume else None,
        "start_bytes": packed.data.nbytes if config.reservoir.source == "broadcast" else 0,
    }
    progress = Progress(config.train.steps)
    reconcile(log.read_new(), tracker)

    def poll() -> None:
        for record in log.read_new():
            tracker.log(record.step, record.metrics, record.timestamp_ms)
            print(progress.format_line(record), flush=True)

    status: RunStatus = "FAILED"
    try:
        clear_stop(config.run_dir)
        follow(
            lambda: fit(config, payload, workers),
            poll,
            ask_to_stop=lambda: request_stop(config.run_dir),
            grace_s=config.cluster.stop_grace_s,
        )
        stop = read_stop(config.run_dir)
        if stop is not None:
            raise stop
        if config.evaluate.yardsticks:
            append_yardsticks(config, data, log)
            reconcile(log.read(), tracker)
        status = "FINISHED"
    except (KeyboardInterrupt, SystemExit, BudgetError):
        status = "KILLED"
        raise
    finally:
        summary = summarise(config, status, counts, price, tracker, log, time.monotonic() - began)
        _close(config, tracker, status, summary)
    return EXIT_DONE


def _acts_on_states(config: JobConfig) -> bool:
    return config.reservoir.placement in ("post_scan", "recurrent")


def _close(config: JobConfig, tracker: Tracker, status: RunStatus, summary: str) -> None:
    events = config.run_dir / EVENTS
    if events.exists():
        tracker.log_artifact(events)
    path = config.run_dir / "summary.txt"
    path.write_text(summary + "\n")
    tracker.log_artifact(path)
    is_stored = tracker.finish(status, timeout_s=3 * config.tracking.timeout_s)
    write_record_state(config.run_dir, tracker.run_id, is_complete=is_stored)
    print(summary, flush=True)


def fit(config: JobConfig, payload: dict[str, Any], workers: Workers) -> None:
    """Run Ray Train to the end; blocks.

    Raises:
        RetriesError: workers failed more often than `cluster.max_failures`.
        ray.train.TrainingFailedError: carries a RcdistError of a worker.
    """
    import ray.train
    from ray.train.torch import TorchConfig, TorchTrainer

    from rcdist.train.loop import train_loop_per_worker
    from rcdist.train.report import RecordKeeper

    set_timeouts(config, workers)
    # Ray's list of earlier checkpoints names those that retention has deleted; the folders themselves are the truth.
    (config.run_dir / "checkpoint_manager_snapshot.json").unlink(missing_ok=True)
    resources = {"CPU": workers.cpus_per_worker} | ({"GPU": 1.0} if workers.use_gpu else {})
    most = workers.num_workers
    trainer = TorchTrainer(
        train_loop_per_worker,
        train_loop_config=payload,
        torch_config=TorchConfig(
            backend="nccl" if workers.use_gpu else "gloo", timeout_s=math.ceil(config.cluster.hang_timeout_s)
        ),
        scaling_config=ray.train.ScalingConfig(
            num_workers=(workers.min_workers, most) if workers.min_workers else most,
            use_gpu=workers.use_gpu,
            resources_per_worker=resources,
            elastic_resize_monitor_interval_s=config.cluster.resize_interval_s,
        ),
        run_config=ray.train.RunConfig(
            name=config.name,
            storage_path=str(config.run_dir.parent),
            callbacks=[RecordKeeper(config.run_dir, config.checkpoint.keep_latest, config.checkpoint.keep_every_steps)],
            # Ray counts pre-emption with notice apart, and retries after it without limit.
            failure_config=ray.train.FailureConfig(max_failures=config.cluster.max_failures),
            worker_runtime_env={"env_vars": worker_environment(workers)},
            logging_config=ray.train.LoggingConfig(log_level="WARNING"),
        ),
    )
    try:
        trainer.fit()
    except ray.train.TrainingFailedError as error:
        if find_cause(error) is not None:
            raise
        report = config.run_dir / "failure.txt"
        report.write_text(redact("".join(traceback.format_exception(error))))
        raise RetriesError(
            "cluster.max_failures",
            config.cluster.max_failures,
            f"the workers failed once more, the last time with: {_last_line(error)}",
            f"Read {report}; the same command goes on from the newest checkpoint",
        ) from error


def _last_line(error: BaseException) -> str:
    """Return the line of a worker's traceback that names its error."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


def follow(
    work: Callable[[], None],
    poll: Callable[[], None],
    *,
    ask_to_stop: Callable[[], None] = lambda: None,
    grace_s: float = 0.0,
) -> None:
    """Run `work` in a thread and `poll` in this one until it ends, then once more; re-raise what `work` raised.

    The main thread stays free for signals: Ctrl-C and SIGTERM take effect at once, and Ray installs no handler of its
    own. They first call `ask_to_stop` and give `work` grace_s seconds to end by itself; a second signal does not wait.
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
            print(f"stopping: saving first, {grace_s:g} s at most; the same signal once more: at once", flush=True)
            ask_to_stop()
            deadline = time.monotonic() + grace_s
            while thread.is_alive() and time.monotonic() < deadline:
                poll()
                time.sleep(_POLL_S)
            poll()
        raise
    poll()
    if failure:
        raise failure[0]
