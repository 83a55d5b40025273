"""A study from its settings to trained, measured and timed arms: what is done already is not done again."""

import logging
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rcdist.cluster import preserved_environment, ray_session
from rcdist.config import JobConfig
from rcdist.data.prepare import prepare_corpora, prepare_text
from rcdist.data.tokenizer import load_tokenizer
from rcdist.errors import BudgetError, ClusterError, ConfigError, RetriesError
from rcdist.lease import Lease
from rcdist.preflight import check_config, refusing_storage
from rcdist.record import mlflow_run_id
from rcdist.storage import read_json, write_file
from rcdist.study.settings import StudyConfig
from rcdist.study.timing import measure_times
from rcdist.study.worker import read_result, train_and_measure
from rcdist.tracking.mlflow import check_server, start_or_continue
from rcdist.tracking.mlflow_runs import STUDY, log_values, set_tags, terminate
from rcdist.tracking.tracker import RunStatus, Tracker

logger = logging.getLogger("rcdist")

_STATE = "study.json"
_LOST = 2
"""Processes that a run may lose before it is given up."""


@dataclass(frozen=True)
class PlannedRun:
    """Hold one run of a study: its arm, its seed and its settings."""

    arm: str
    seed: int
    config: JobConfig


def plan_runs(config: StudyConfig) -> list[PlannedRun]:
    """Return the runs of the arms that are asked for: all arms with the first seed, then with the second, and so on.

    Raises:
        ConfigError: an arm cannot be run.
    """
    if not config.arms:
        raise ConfigError("arms", "{}", "there is no arm", "Name at least one, e.g. --config headline")
    if "://" in config.storage_path:
        rule = "a study needs a folder: its processes read one another's results there"
        raise ConfigError("storage_path", config.storage_path, rule, "Use a folder that all nodes share")
    chosen = config.study.only or list(config.arms)
    most = max(config.seeds_of(arm) for arm in chosen)
    runs = [
        PlannedRun(arm, seed, config.run_config(arm, seed))
        for seed in range(most)
        for arm in chosen
        if seed < config.seeds_of(arm)
    ]
    for run in runs:
        if run.config.cluster.num_workers != 1:
            number = run.config.cluster.num_workers
            raise ConfigError("cluster.num_workers", number, "a run of a study has one worker", "Leave it out")
    return runs


def train_study(config: StudyConfig, say: Callable[[str], None]) -> None:
    """Train and measure what is not done yet; blocks.

    Args:
        config: the study.
        say: is given one line per run that has ended.

    Raises:
        RcdistError: a setting is wrong, nothing fits, or a run has failed; the others are done first.
        BudgetError: study.max_wall_s is over; the same command goes on.
    """
    began = time.monotonic()
    with preserved_environment(), ExitStack() as stack:
        config = config.model_copy(update={"storage_path": str(config.storage.resolve())})
        runs = plan_runs(config)
        left = [run for run in runs if read_result(run.config) is None]
        if not left:
            say(f"all {len(runs)} runs are done")
            return
        for run in left:
            check_config(run.config)
        tracker = open_study(config, stack)
        stack.enter_context(ray_session(config, log_to_driver=False))
        room = _count_room(config)
        _prepare_text(config, left)
        say(f"{len(left)} of {len(runs)} runs to train, {room} at one time")
        status: RunStatus = "KILLED"
        pool = _Pool(config, tracker.run_id, room, began, say)
        try:
            pool.work(left)
            failed = pool.failed
            missing = [run.config.name for run in left if read_result(run.config) is None]
            status = "FAILED" if failed else "KILLED" if missing else "FINISHED"
        except (KeyboardInterrupt, SystemExit):
            pool.close_running()
            raise
        finally:
            tracker.finish(status, timeout_s=3 * config.tracking.timeout_s)
        if failed:
            name, reason = next(iter(failed.items()))
            rule = f"{len(failed)} of its runs failed; the first, {name}: {reason}"
            raise RetriesError("name", config.name, rule, "Correct that; the same command trains what is not done")
        if missing:
            rule = f"over with {len(missing)} runs left, {missing[0]} the next"
            raise BudgetError("study.max_wall_s", config.study.max_wall_s, rule, "The same command goes on")


def time_study(config: StudyConfig, say: Callable[[str], None]) -> None:
    """Time each arm against its baseline here, alternately, and keep the ratios in MLflow; nothing else may run."""
    with preserved_environment(), ExitStack() as stack:
        config = config.model_copy(update={"storage_path": str(config.storage.resolve())})
        runs = {run.arm: run.config for run in plan_runs(config) if run.seed == 0}
        for run in runs.values():
            check_config(run)
        tracker = open_study(config, stack)
        try:
            for arm, run in runs.items():
                baseline = config.baseline_of(arm)
                found, device, name = measure_times(run, config.run_config(baseline, 0), config.study.timing_pairs)
                values = {f"time/{device}/{arm}/{key}": value for key, value in found.items()}
                log_values(config.tracking_uri, {tracker.run_id: values}, step=0)
                set_tags(config.tracking_uri, tracker.run_id, {f"time/{device}": name})
                shown = ", ".join(f"{kind} {found[f'{kind}/ratio']:.3f}" for kind in ("train", "prefill", "decode"))
                say(f"{arm} over {baseline} on {name}: {shown}")
        finally:
            tracker.finish("FINISHED", timeout_s=3 * config.tracking.timeout_s)


def open_study(config: StudyConfig, stack: ExitStack) -> Tracker:
    """Hold the study's folder while the stack is open, and start or continue its run in MLflow."""
    folder = config.storage / "studies" / config.name
    with refusing_storage(config):
        stack.enter_context(Lease(folder, config.name))
    check_server(config.tracking_uri, config.tracking.experiment, config.tracking.timeout_s)
    tracker = start_or_continue(
        config.tracking_uri,
        config.tracking.experiment,
        config.name,
        read_json(folder / _STATE).get("mlflow_run_id"),
        config=config.model_dump(mode="json"),
        facts={},
        tags={"kind": STUDY},
        timeout_s=config.tracking.timeout_s,
    )
    write_file(folder / _STATE, f'{{"mlflow_run_id": "{tracker.run_id}"}}')
    return tracker


def _count_room(config: StudyConfig) -> int:
    """Return how many runs the connected cluster holds at one time.

    Raises:
        ClusterError: none.
    """
    import ray

    has = ray.cluster_resources()
    cpus = int(has.get("CPU", 0) / config.cluster.cpus_per_worker)
    if not _uses_gpu(config):
        room, lacks = (
            cpus,
            f"a run needs {config.cluster.cpus_per_worker:g} CPUs, the cluster has {has.get('CPU', 0):g}",
        )
    else:
        room = min(cpus, int(has.get("GPU", 0)) * int(1 / config.study.gpus_per_run + 1e-9))
        lacks = f"a run needs {config.study.gpus_per_run:g} GPU, the cluster has {has.get('GPU', 0):g}"
    if not room:
        raise ClusterError("cluster.cpus_per_worker", config.cluster.cpus_per_worker, lacks, "Use a larger one")
    return room


def _uses_gpu(config: StudyConfig) -> bool:
    import ray

    return ray.cluster_resources().get("GPU", 0) > 0 if config.cluster.use_gpu is None else config.cluster.use_gpu


def _prepare_text(config: StudyConfig, runs: list[PlannedRun]) -> None:
    """Tokenise everything here, where Ray Data has the whole cluster, and not where every run has its share of it."""
    done = set()
    for run in runs:
        tokens = (run.config.tokenizer, run.config.model.vocab_size, run.config.data.model_copy(update={"seed": 0}))
        key = repr(tokens)
        if key in done:
            continue
        done.add(key)
        data = prepare_corpora(run.config, logger.info)
        settings = run.config.model_copy(deep=True)
        settings.data.text_column = config.study.text_column
        for entry in config.study.texts.values():
            prepare_text(settings, [entry], load_tokenizer(Path(data.tokenizer_dir)))


class _Pool:
    """Keep as many processes busy as there is room for, each with one run after the other.

    Args:
        config: the study.
        parent_run_id: of the study in MLflow.
        room: processes at one time.
        began: when the study was started, by the monotonic clock.
        say: is given one line per run.
    """

    def __init__(
        self, config: StudyConfig, parent_run_id: str, room: int, began: float, say: Callable[[str], None]
    ) -> None:
        import ray

        self._config, self._parent, self._room, self._began, self._say = config, parent_run_id, room, began, say
        gpus = config.study.gpus_per_run if _uses_gpu(config) else 0
        self._actor = ray.remote(num_cpus=config.cluster.cpus_per_worker, num_gpus=gpus)(_Process)
        self._busy: dict[Any, tuple[Any, PlannedRun]] = {}
        self.failed: dict[str, str] = {}
        """Why runs have failed, by name."""

    def work(self, runs: list[PlannedRun]) -> None:
        """Do the runs in their order."""
        import ray

        queue, busy, failed = list(runs), self._busy, self.failed
        idle = [self._actor.remote() for _ in range(min(self._room, len(queue)))]
        lost: Counter[str] = Counter()
        while busy or (queue and not self._is_over()):
            while queue and idle and not self._is_over():
                run, actor = queue.pop(0), idle.pop(0)
                busy[actor.work.remote(*self._task(run))] = (actor, run)
            (ready,), _ = ray.wait(list(busy), num_returns=1)
            actor, run = busy.pop(ready)
            try:
                found = ray.get(ready)
            except ray.exceptions.RayActorError:
                actor, found = self._actor.remote(), {"error": "its process was lost", "seconds": 0.0}
                lost[run.config.name] += 1
                if lost[run.config.name] < _LOST:
                    queue.insert(0, run)
                    found["error"] += "; it is tried once more"
            idle.append(actor)
            if "error" in found:
                failed[run.config.name] = found["error"]
            else:
                failed.pop(run.config.name, None)
            self._say(_describe(run, found, time.monotonic() - self._began))
        for actor in idle:
            ray.kill(actor)

    def close_running(self) -> None:
        """Say of the runs that are under way that they were killed: their processes end with this one, and cannot."""
        for _, run in list(self._busy.values()):
            run_id = mlflow_run_id(run.config.run_dir)
            if run_id is not None:
                terminate(run.config.tracking_uri, run_id, "KILLED")

    def _task(self, run: PlannedRun) -> tuple[Any, ...]:
        study = self._config.study
        tags = {"mlflow.parentRunId": self._parent, "study/arm": run.arm, "study/seed": str(run.seed)}
        pairs = None if study.blimp is None else (study.blimp, study.max_pairs)
        # The driver has proved the tokens once for all runs.
        config = run.config.model_copy(update={"data": run.config.data.model_copy(update={"verify_cache": False})})
        return config, tags, study.texts, study.text_column, pairs, study.keep_checkpoints

    def _is_over(self) -> bool:
        limit = self._config.study.max_wall_s
        return limit is not None and time.monotonic() - self._began > limit


class _Process:
    """Work in an actor: imports, kernels and the process group are paid for once."""

    def work(self, *task: Any) -> dict[str, Any]:
        """Do one run."""
        return train_and_measure(*task)


def _describe(run: PlannedRun, found: dict[str, Any], elapsed_s: float) -> str:
    head = f"{elapsed_s:6.0f} s  {run.config.name:32} {run.config.reservoir.plan:16}"
    if "error" in found:
        return f"{head} failed: {found['error']}"
    shown = [f"{found['metrics']['eval/bits_per_byte']:.4f} bits/byte"]
    shown += [f"{k.split('/')[1]} {v:.4f}" for k, v in found["metrics"].items() if k.startswith("evaluate/")]
    return f"{head} {'  '.join(shown)}  ({found['seconds']:.0f} s)"
