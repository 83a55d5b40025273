"""A run from its settings to its result: `run` for programs, `launch` for jobs, which print and return an exit code."""

import importlib
import logging
import shutil
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from rcdist.bucket_lease import BucketLease
from rcdist.checkpoint.find import Found
from rcdist.checkpoint.mirror import WORKER_FILES
from rcdist.checkpoint.untrusted import admit
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
from rcdist.data.corpora import PreparedData
from rcdist.data.prepare import prepare_corpora
from rcdist.data.yardsticks import yardsticks_of
from rcdist.errors import EXIT_DONE, BudgetError, ConfigError, RcdistError
from rcdist.estimate.cost import describe_cost, format_cost
from rcdist.estimate.run import format_run
from rcdist.exits import find_cause
from rcdist.lease import Lease
from rcdist.model.reservoir import PackedBank, ReservoirBank, build_bank
from rcdist.model.spectrum import measure_reservoirs
from rcdist.ops import native
from rcdist.preflight import check_config, check_data, find_resume, keep_version, refusing_storage
from rcdist.printing import printed_log
from rcdist.record import OnRecord, RunRecord, is_complete
from rcdist.result import RunResult, format_result, read_result
from rcdist.startup import Startup
from rcdist.storage import say, write_file
from rcdist.tracking.ledger import Ledger
from rcdist.tracking.mlflow import check_server
from rcdist.tracking.prices import PriceRow, resolve_price
from rcdist.tracking.progress import Progress
from rcdist.tracking.provenance import redact_tree
from rcdist.tracking.tracker import RunStatus
from rcdist.train.control import STOP_ERROR, STOP_REQUEST, clear_stop, mirror_of, read_stop, send_stop_request
from rcdist.train.payload import Payload
from rcdist.working_copy import held_run

if TYPE_CHECKING:
    from ray.train import UserCallback

logger = logging.getLogger("rcdist")


def run(
    config: JobConfig,
    *,
    callbacks: "Sequence[UserCallback]" = (),
    on_record: OnRecord | None = None,
    tags: Mapping[str, str] | None = None,
    here: bool = False,
) -> RunResult:
    """Run, or continue, one pre-training job to its end; blocks.

    The run is held (see Lease) for as long. Nothing else is written into its folder, and no worker is asked for, before
    every setting, the storage, the checkpoint that may be there, the tracking server and the corpora have been found
    right. Nothing is printed (the logger `rcdist` says at level INFO what goes on), and the environment of this process
    is as before afterwards. A Ray that is initialised in this process is used and left running.

    Args:
        config: the run.
        callbacks: for Ray Train's controller, as a TuneReportCallback.
        on_record: called in this thread with each new record.
        tags: of the run in MLflow, besides its plan.
        here: train in this process, as the only worker, instead of starting one: what a search's short runs are for.

    Returns:
        How it ended, also if it ended by a RcdistError after it had started.

    Raises:
        RcdistError: it cannot be started.
        ray.train.TrainingFailedError: Ray Train itself failed.
        KeyboardInterrupt, SystemExit: a signal came; a checkpoint was saved if there was time.
    """
    startup = Startup(time.time())
    with preserved_environment():
        check_config(config)
        # Workers run in folders of their own: the path must not depend on where the job was started.
        if config.bucket is None:
            config = config.model_copy(update={"storage_path": str(config.storage.resolve())})
        with ExitStack() as stack:
            lease = stack.enter_context(held_run(config))
            resume = find_resume(config)
            config = keep_version(config, resume)
            check_server(config.tracking_uri, config.tracking.experiment, config.tracking.timeout_s)
            if resume and resume.manifest.step >= config.train.steps:
                return _complete(config, resume, tags)
            if is_local(config) and not torch.cuda.is_available():
                # The workers need the kernels: compiled while Ray starts and the corpora are tokenised.
                threading.Thread(target=native.is_available, daemon=True, name="compile").start()
            startup.mark("settings")
            # What the driver needs later, while Ray starts.
            threading.Thread(target=importlib.import_module, args=("rcdist.trainer",), daemon=True).start()
            threading.Thread(target=importlib.import_module, args=("rcdist.train.loop",), daemon=True).start()
            with ray_session(config):
                startup.mark("Ray")
                workers = resolve_workers(config)
                if here and (number := workers.num_workers) > 1:
                    raise ConfigError("cluster.num_workers", number, "one process is one worker", "Use 1")
                gpu = gpu_name() if workers.use_gpu else None
                price = resolve_price(config.cost, gpu, config.cluster.cpus_per_worker)
                data = prepare_corpora(config, logger.info)
                startup.mark("text")
                if resume:
                    check_data(resume, data)
                logger.info(format_run(config, workers, price, data))
                job = _Launch(config, lease, resume, workers, price, data, startup, dict(tags or {}), here)
                return job.run(callbacks, on_record)


def _complete(config: JobConfig, resume: Found, tags: Mapping[str, str] | None) -> RunResult:
    """Answer for a run that has all its steps; MLflow may have missed the end of it."""
    run_id = resume.manifest.mlflow_run_id
    if not is_complete(config.run_dir):
        record = RunRecord(config, resume, facts={}, tags=tags)
        record.close("FINISHED")
        run_id = record.tracker.run_id
    logger.info(
        "run %r has all %d steps in %s. To go on, raise train.steps; to start again, choose another name.",
        config.name,
        resume.manifest.step,
        resume.folder,
    )
    return read_result(config, "FINISHED", run_id)


@dataclass(frozen=True)
class _Launch:
    """Hold what is known of a run before its workers are started."""

    config: JobConfig
    lease: Lease | BucketLease
    resume: Found | None
    workers: Workers
    price: PriceRow
    data: PreparedData
    startup: Startup
    tags: Mapping[str, str]
    here: bool

    def run(self, callbacks: "Sequence[UserCallback]", on_record: OnRecord | None) -> RunResult:
        """Train, and keep the record whatever happens."""
        config = self.config
        bank = build_bank(config.architecture)
        packed = bank.pack()
        if self.resume:
            self.resume.check_reservoir(packed.digest)
        cost_file = config.run_dir / "cost.txt"
        with refusing_storage(config):
            write_file(config.run_dir / "config.yaml", dump_config(redact_tree(config.model_dump(mode="json"))))
            write_file(cost_file, format_cost(config) + "\n")
            record = RunRecord(config, self.resume, self._facts(bank, packed), on_record, self.tags)
        record.tracker.log_artifact(cost_file)
        status: RunStatus = "FAILED"
        failure: RcdistError | None = None
        try:
            with self._start() as resume:
                self._train(self._payload(packed, record, resume), record, callbacks)
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
            if not self.lease.is_lost:  # else the record is another job's now
                result = self._close(record, status, failure)
        if self.lease.is_lost:
            self.lease.prove()
        return result

    def _close(self, record: RunRecord, status: RunStatus, failure: RcdistError | None) -> RunResult:
        """Say how it ended; what cannot be read or written of that is said, and hides nothing."""
        result = RunResult(status, 0, {}, None, Ledger(), record.tracker.run_id, failure)
        summary: str | None = None
        try:
            result = read_result(self.config, status, record.tracker.run_id, failure)
            summary = format_result(self.config, self.price, result, time.time() - self.startup.began)
        except OSError as error:
            logger.warning("the run's folder cannot be read: %s", error)
        record.close(status, summary)
        if summary is not None:
            logger.info(summary)
        return result

    @contextmanager
    def _start(self) -> Iterator[Found | None]:
        """Give the checkpoint to start from: of another run a copy that nobody else can change, while open."""
        for left in self.config.run_dir.glob("admitted-*"):
            shutil.rmtree(left, ignore_errors=True)
        if self.resume is None or self.resume.folder.parent == self.config.run_dir:
            yield self.resume
            return
        with refusing_storage(self.config):
            copy = admit(self.resume, self.config.run_dir)
        try:
            yield copy
        finally:
            shutil.rmtree(copy.folder.parent, ignore_errors=True)

    def _train(self, payload: Payload, record: RunRecord, callbacks: "Sequence[UserCallback]") -> None:
        from rcdist.trainer import fit, fit_here, follow

        run_dir = self.config.run_dir

        def poll() -> None:
            self.lease.prove()
            record.poll()

        mirror = mirror_of(self.config)
        clear_stop(run_dir)
        mirror.clear([STOP_ERROR, STOP_REQUEST])
        try:
            follow(
                lambda: fit_here(payload, self.workers) if self.here else fit(payload, self.workers, callbacks),
                poll,
                request_stop=lambda: send_stop_request(self.config),
                grace_s=self.config.cluster.stop_grace_s,
            )
        finally:
            mirror.try_pull([STOP_ERROR, *WORKER_FILES], if_newer=True)
        stop = read_stop(run_dir)
        if stop is not None:
            raise stop

    def _payload(self, packed: PackedBank, record: RunRecord, resume: Found | None) -> Payload:
        import ray

        is_sent = self.config.reservoir.source == "broadcast"
        bank_ref = ray.put(packed) if is_sent else None
        self.startup.mark("reservoir and records")
        return Payload(
            config=self.config,
            data=self.data,
            price=self.price,
            bank_ref=bank_ref,
            bank_digest=packed.digest,
            mlflow_run_id=record.tracker.run_id,
            began=self.startup.began,
            startup=self.startup.ended,
            resume=resume,
            is_here=self.here,
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


def launch(config: JobConfig) -> int:
    """Run one job, print what goes on, and return its exit code.

    Raises:
        RcdistError: what is wrong, with its exit code.
    """
    progress = Progress(config.train.steps)
    with printed_log():
        result = run(config, on_record=lambda record: say(progress.format_line(record)))
    if result.error is not None:
        raise result.error
    return EXIT_DONE
