"""Find the cluster, decide how many workers train, and what their environment is."""

import os
import secrets
import signal
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rcdist.address import find_address, given_address
from rcdist.config import JobConfig
from rcdist.errors import ClusterError
from rcdist.ports import free_port

WORKERS_ON_CPU = 2
"""Workers of a run without GPUs: enough to exercise everything that is distributed."""


@dataclass(frozen=True)
class Workers:
    """Say how many workers of which kind a run has.

    Attributes:
        num_workers: at most.
        use_gpu: each has one GPU.
        cpus_per_worker: that each reserves.
        min_workers: with which it goes on; None: with num_workers only.
    """

    num_workers: int
    use_gpu: bool
    cpus_per_worker: float
    min_workers: int | None = None


@contextmanager
def preserved_environment() -> Iterator[None]:
    """Restore the environment of this process on exit: Ray Train and MLflow are configured through it."""
    before = dict(os.environ)
    try:
        yield
    finally:
        for name in os.environ.keys() - before.keys():
            del os.environ[name]
        os.environ.update(before)


@contextmanager
def ray_session(config: JobConfig, *, log_to_driver: bool = True) -> Iterator[None]:
    """Connect to the cluster of the job, or start a local Ray that ends with this process.

    A Ray that is already initialised in this process is used and left running. A cluster that merely runs on this
    machine is not joined: only `cluster.address` or RAY_ADDRESS, which `ray job submit` sets, name one.

    Args:
        config: the job.
        log_to_driver: print here what workers print.

    Raises:
        ConfigError: the address, or the folder for temporary files, cannot be right.
        ClusterError: no Ray answers at the address, or Ray does not start.
    """
    import ray

    if ray.is_initialized():
        yield
        return
    stopping = signal.getsignal(signal.SIGTERM)
    address = find_address(config)
    if address:
        with _refusing(config):
            ray.init(address=address, logging_level="WARNING", log_to_driver=log_to_driver)
    else:
        cpus = max(os.cpu_count() or 1, WORKERS_ON_CPU)
        # With the dashboard, on loopback, because Ray Train's clean-up of placement groups asks its State API. It would
        # look for one, and take none where several runs have a Ray each: all that Ray starts inherits where ours is.
        port = free_port()
        os.environ["RAY_API_SERVER_ADDRESS"] = f"http://127.0.0.1:{port}"
        _give_token()
        with _refusing(config):
            ray.init(
                address="local",
                num_cpus=cpus,
                include_dashboard=True,
                dashboard_port=port,
                logging_level="WARNING",
                log_to_driver=log_to_driver,
            )
    if threading.current_thread() is threading.main_thread():
        # Ray's native handler of SIGTERM prints a stack trace, and aborts the process 3 s later; its handler in Python
        # raises SystemExit, which ends the process with 1 while it waits in ray.get.
        ours = stopping if callable(stopping) else signal.getsignal(signal.SIGTERM)
        signal.signal(signal.SIGTERM, ours or signal.SIG_DFL)
    try:
        yield
    finally:
        ray.shutdown()


def _give_token() -> None:
    """Let a local Ray have its token in the environment where it cannot be saved in the home folder.

    Ray wants one since 2.60, and reads it in every process that it starts.
    """
    if any(f"RAY_AUTH_{name}" in os.environ for name in ("MODE", "TOKEN", "TOKEN_PATH")):
        return
    try:
        folder = Path("~/.ray").expanduser()
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except (OSError, RuntimeError):
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)


@contextmanager
def _refusing(config: JobConfig) -> Iterator[None]:
    """Turn what Ray raises when it cannot start, or cannot be joined, into one line."""
    try:
        yield
    except Exception as error:
        field, value = given_address(config) or ("cluster.address", "local")
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        remedy = f"Ray's logs are in {os.environ.get('RAY_TMPDIR', tempfile.gettempdir())}/ray/session_latest/logs"
        raise ClusterError(
            field, value, f"Ray cannot be {'joined' if value != 'local' else 'started'}: {reason}", remedy
        ) from error


def is_local(config: JobConfig) -> bool:
    """Say whether the run starts a Ray of its own on this machine, which cannot grow."""
    return given_address(config) is None


def resolve_workers(config: JobConfig) -> Workers:
    """Decide how many workers train, from the configuration and what the connected cluster has.

    Raises:
        ClusterError: a local Ray, which cannot grow, has too few devices.
    """
    import ray

    resources = ray.cluster_resources()
    gpus = int(resources.get("GPU", 0))
    use_gpu = gpus > 0 if config.cluster.use_gpu is None else config.cluster.use_gpu
    wanted = config.cluster.num_workers or (gpus if use_gpu and gpus else WORKERS_ON_CPU)
    least, num_workers = wanted if isinstance(wanted, tuple) else (wanted, wanted)
    local = is_local(config)
    kind, has = ("GPU", float(gpus)) if use_gpu else ("CPU", resources.get("CPU", 0.0))
    needs = least * (1.0 if use_gpu else config.cluster.cpus_per_worker)
    if local and needs > has:
        raise ClusterError(
            "cluster.num_workers",
            least,
            f"needs {needs:g} {kind}s, this machine's Ray has {has:g}",
            f"Use fewer workers, or give cluster.address of a cluster with {needs:g} {kind}s",
        )
    min_workers = least if isinstance(wanted, tuple) else None
    return Workers(num_workers, use_gpu, config.cluster.cpus_per_worker, min_workers)


def planned_workers(config: JobConfig) -> Workers:
    """Return the workers of a run whose cluster has all it asks for; connects to nothing."""
    wanted = config.cluster.num_workers or (1 if config.cluster.use_gpu else WORKERS_ON_CPU)
    least, most = wanted if isinstance(wanted, tuple) else (None, wanted)
    return Workers(most, bool(config.cluster.use_gpu), config.cluster.cpus_per_worker, least)


def gpu_name() -> str:
    """Return the name of the cluster's GPUs as Ray labels them, "GPU" when it does not say."""
    import ray

    prefix = "accelerator_type:"
    return next((key.removeprefix(prefix) for key in ray.cluster_resources() if key.startswith(prefix)), "GPU")


def set_timeouts(config: JobConfig, workers: Workers) -> None:
    """Set Ray Train's timeouts in the environment that its controller inherits; values set by the user win.

    Besides: `cluster.hang_timeout_s` bounds every collective, and what a cluster takes to notice that a node is gone
    (`RAY_health_check_*`, 30 to 60 s unless its connections break) is set where the cluster is started.
    """
    fewest_will_do = workers.min_workers is not None
    start_timeout_s = config.cluster.start_timeout_s or (30.0 if fewest_will_do else 600.0)
    variables = {
        # The controller polls workers at this interval; its default of 2 s delays every record and the end of a run.
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
        # After a node is lost Ray waits this long for as many workers as before. It asks for fewer only then.
        "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": str(start_timeout_s),
    }
    if is_local(config):
        # This machine is never pre-empted, and starting the watcher would log an error of Ray's own.
        variables["RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"] = "0"
    for name, value in variables.items():
        os.environ.setdefault(name, value)


def worker_environment(workers: Workers) -> dict[str, str]:
    """Return the environment variables of every training worker, each for a reason."""
    environment = {
        # More threads than cores slow every process down: a worker gets the threads it reserved.
        "OMP_NUM_THREADS": str(max(int(workers.cpus_per_worker), 1)),
        "TOKENIZERS_PARALLELISM": "false",
        "DEEPSPEED_LOG_LEVEL": "warning",
        # Its warnings are of host names that cannot be looked up; what ends a worker is an exception as well.
        "TORCH_CPP_LOG_LEVEL": "ERROR",
        # DeepSpeed calls collectives under names that torch 2.13 has renamed: one warning per call site and worker.
        "PYTHONWARNINGS": "ignore::FutureWarning:torch.distributed.c10d_logger",
    }
    # Of the driver: a fault on purpose (train/fault_injection.py), a processor with less (ops/processor.py).
    environment |= {name: os.environ[name] for name in ("RCDIST_FAULT", "RCDIST_MAX_CPU_ISA") if name in os.environ}
    if not workers.use_gpu:
        # Must be set before DeepSpeed is imported; without a GPU it would probe for accelerators.
        environment["DS_ACCELERATOR"] = "cpu"
    return environment
