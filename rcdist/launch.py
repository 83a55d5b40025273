"""A run from its settings to its result: `run` for programs, `launch` for jobs, which print and return an exit code."""

import logging
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from rcdist.checkpoint.find import Found, find_checkpoints
from rcdist.cluster import (
    Workers,
    gpu_name,
    is_local,
    preserved_environment,
    ray_session,
    resolve_workers,
)
from rcdist.config import JobConfig
from rcdist.config.cli import dump_config
from rcdist.config.plan import RESERVOIR_LETTER
from rcdist.data.prepare import PreparedData, prepare_corpora
from rcdist.data.yardsticks import yardsticks_of
from rcdist.errors import EXIT_DONE, BudgetError, RcdistError
from rcdist.estimate import describe_cost, format_cost, format_run
from rcdist.exits import find_cause
from rcdist.model.cost import count_parameters
from rcdist.model.reservoir import PackedBank, ReservoirBank, build_bank
from rcdist.model.spectrum import measure_reservoirs
from rcdist.ops import native
from rcdist.preflight import check_config, check_data, find_resume
from rcdist.record import OnRecord, RunRecord, is_complete, newest_metrics
from rcdist.tracking.jsonl import MetricsLog
from rcdist.tracking.ledger import Ledger
from rcdist.tracking.mlflow import check_server
from rcdist.tracking.prices import PriceRow, resolve_price
from rcdist.tracking.progress import Progress, format_duration, format_summary
from rcdist.tracking.provenance import redact
from rcdist.tracking.tracker import RunStatus
from rcdist.train.control import clear_stop, read_stop, request_stop
from rcdist.train.meter import read_ledger
from rcdist.train.payload import Payload

if TYPE_CHECKING:
    from ray.train import UserCallback

logger = logging.getLogger("rcdist")


@dataclass(frozen=True)
class RunResult:
    """Hold how a run ended.

    Attributes:
        status: FINISHED: all steps are done; FAILED; KILLED: a budget is used up.
        step: optimizer steps done.
        metrics: the newest value of each metric.
        checkpoint: the newest checkpoint.
        ledger: what the run has used, over all its jobs.
        mlflow_run_id: of the run in MLflow.
        error: why it is not FINISHED: a budget, divergence, retries, a full storage.
    """

    status: RunStatus
    step: int
    metrics: dict[str, float]
    checkpoint: Path | None
    ledger: Ledger
    mlflow_run_id: str | None
    error: RcdistError | None = None


def run(config: JobConfig, *, callbacks: "Sequence[UserCallback]" = (), on_record: OnRecord | None = None) -> RunResult:
    """Run, or continue, one pre-training job to its end; blocks.

    Nothing is written into the run's folder, and no worker is asked for, before every setting, the storage, the
    checkpoint that may be there, the tracking server and the corpora have been found right. Nothing is printed (the
    logger `rcdist` says at level INFO what goes on), and the environment of this process is as before afterwards. A Ray
    that is initialised in this process is used and left running.

    Args:
        config: the run.
        callbacks: for Ray Train's controller, as a TuneReportCallback.
        on_record: called in this thread with each new record.

    Returns:
        How it ended, also if it ended by a RcdistError after it had started.

    Raises:
        RcdistError: it cannot be started.
        ray.train.TrainingFailedError: Ray Train itself failed.
        KeyboardInterrupt, SystemExit: a signal came; a checkpoint was saved if there was time.
    """
    began = time.monotonic()
    with preserved_environment():
        check_config(config)
        # Workers run in folders of their own: the path must not depend on where the job was started.
        config = config.model_copy(update={"storage_path": str(config.storage.resolve())})
        resume = find_resume(config)
        check_server(config.tracking_uri, config.tracking.experiment, config.tracking.timeout_s)
        if resume and resume.manifest.step >= config.train.steps:
            return _complete(config, resume)
        if is_local(config) and not torch.cuda.is_available():
            # The workers need the kernels: compiled while Ray starts and the corpora are tokenised.
            threading.Thread(target=native.is_available, daemon=True, name="compile").start()
        with ray_session(config):
            workers = resolve_workers(config)
            price = resolve_price(config.cost, gpu_name() if workers.use_gpu else None, config.cluster.cpus_per_worker)
            data = prepare_corpora(config, logger.info)
            if resume:
                check_data(resume, data)
            logger.info(format_run(config, workers, price, data))
            return _Launch(config, resume, workers, price, data, began).run(callbacks, on_record)


def _complete(config: JobConfig, resume: Found) -> RunResult:
    """Answer for a run that has all its steps; MLflow may have missed the end of it."""
    run_id = resume.manifest.mlflow_run_id
    if not is_complete(config.run_dir):
        record = RunRecord(config, resume, facts={})
        record.close("FINISHED")
        run_id = record.tracker.run_id
    logger.info(
        "run %r has all %d steps in %s. To go on, raise train.steps; to start again, choose another name.",
        config.name,
        resume.manifest.step,
        resume.folder,
    )
    return _result(config, "FINISHED", run_id)


def _result(config: JobConfig, status: RunStatus, run_id: str | None, error: RcdistError | None = None) -> RunResult:
    records, checkpoints = MetricsLog(config.run_dir).read(), find_checkpoints(config.run_dir)
    return RunResult(
        status=status,
        step=records[-1].step if records else 0,
        metrics=newest_metrics(records),
        checkpoint=checkpoints[0] if checkpoints else None,
        ledger=read_ledger(config.run_dir),
        mlflow_run_id=run_id,
        error=error,
    )


@dataclass(frozen=True)
class _Launch:
    """Hold what is known of a run before its workers are started."""

    config: JobConfig
    resume: Found | None
    workers: Workers
    price: PriceRow
    data: PreparedData
    began: float

    def run(self, callbacks: "Sequence[UserCallback]", on_record: OnRecord | None) -> RunResult:
        """Train, and keep the record whatever happens."""
        config = self.config
        config.run_dir.mkdir(parents=True, exist_ok=True)
        (config.run_dir / "config.yaml").write_text(redact(dump_config(config)))
        cost_file = config.run_dir / "cost.txt"
        cost_file.write_text(format_cost(config) + "\n")
        bank = build_bank(config.architecture)
        packed = bank.pack()
        record = RunRecord(config, self.resume, self._facts(bank, packed), on_record)
        record.tracker.log_artifact(cost_file)
        status: RunStatus = "FAILED"
        failure: RcdistError | None = None
        try:
            self._train(self._payload(packed, record), record, callbacks)
            if config.evaluate.yardsticks:
                record.amend_last(yardsticks_of(config, self.data))
            status = "FINISHED"
        except (KeyboardInterrupt, SystemExit):
            status = "KILLED"
            raise
        except Exception as error:
            failure = find_cause(error)
            if failure is None:
                raise
            status = "KILLED" if isinstance(failure, BudgetError) else "FAILED"
        finally:
            result = _result(config, status, record.tracker.run_id, failure)
            summary = self._summarise(result)
            record.close(status, summary)
            logger.info(summary)
        return result

    def _train(self, payload: Payload, record: RunRecord, callbacks: "Sequence[UserCallback]") -> None:
        from rcdist.trainer import fit, follow

        run_dir = self.config.run_dir
        clear_stop(run_dir)
        follow(
            lambda: fit(payload, self.workers, callbacks),
            record.poll,
            request_stop=lambda: request_stop(run_dir),
            grace_s=self.config.cluster.stop_grace_s,
        )
        stop = read_stop(run_dir)
        if stop is not None:
            raise stop

    def _payload(self, packed: PackedBank, record: RunRecord) -> Payload:
        import ray

        is_sent = self.config.reservoir.source == "broadcast"
        return Payload(
            config=self.config,
            data=self.data,
            price=self.price,
            bank_ref=ray.put(packed) if is_sent else None,
            bank_digest=packed.digest,
            start_bytes=packed.data.nbytes if is_sent else 0,
            mlflow_run_id=record.tracker.run_id,
            began=time.time() - (time.monotonic() - self.began),
            resume=self.resume,
        )

    def _facts(self, bank: ReservoirBank, packed: PackedBank) -> dict[str, Any]:
        """Return what describes the run besides its settings."""
        # Of inputs and readouts a radius says nothing; where W_r acts on the states it decides over their memory.
        acts_on_states = self.config.reservoir.placement in ("post_scan", "recurrent")
        measured = measure_reservoirs(bank, RESERVOIR_LETTER) if acts_on_states else {}
        if measured:
            radii = ", ".join(f"{key} {radius:.3f}" for key, radius in measured.items())
            logger.info("measured spectral radius: %s", radii)
        return {
            "cost": {key: value for key, value in describe_cost(self.config).items() if key != "matrices"},
            "data": {"train_digest": self.data.train.digest, "validation_digest": self.data.validation.digest},
            "tokenizer_digest": self.data.tokenizer_digest,
            "reservoir_digest": packed.digest,
            "reservoir_spectral_radius": measured,
            "workers": vars(self.workers),
        }

    def _summarise(self, result: RunResult) -> str:
        config, price, counts = self.config, self.price, count_parameters(self.config.architecture)
        head = {
            "run": f"{config.name} ({result.status})",
            "plan": config.reservoir.plan,
            "parameters stored": f"{counts.stored:,}",
            "  trained": f"{counts.trained:,}",
            "  frozen, unique": f"{counts.frozen_unique:,}",
            "  frozen, as applied": f"{counts.frozen:,}",
            "steps": f"{result.step} of {config.train.steps}",
            "wall time": format_duration(time.monotonic() - self.began),
        }
        foot = {
            "price": f"{price.usd_per_device_hour:g} USD per device hour ({price.name}, {price.market})",
            "checkpoint": str(result.checkpoint or "none"),
            "MLflow": redact(config.tracking_uri),
            "MLflow run": result.mlflow_run_id or "none",
        }
        return format_summary(head, result.metrics, foot)


def launch(config: JobConfig) -> int:
    """Run one job, print what goes on, and return its exit code.

    Raises:
        RcdistError: what is wrong, with its exit code.
    """
    progress = Progress(config.train.steps)
    with printed_log():
        result = run(config, on_record=lambda record: print(progress.format_line(record), flush=True))
    if result.error is not None:
        raise result.error
    return EXIT_DONE


@contextmanager
def printed_log() -> Iterator[None]:
    """Print what the logger `rcdist` says while open: information on stdout, warnings on stderr."""
    handler, level = _Printer(), logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        logger.propagate = True


class _Printer(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        stream = sys.stderr if record.levelno >= logging.WARNING else sys.stdout
        print(self.format(record), file=stream, flush=True)
