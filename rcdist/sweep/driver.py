"""A search from its settings to its front: `sweep` for programs, `launch_sweep` for the job, which prints."""

import contextlib
import logging
import os
import shutil
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from rcdist.cluster import gpu_name, preserved_environment, ray_session
from rcdist.config import JobConfig
from rcdist.data.prepare import prepare_corpora
from rcdist.errors import EXIT_DONE, BudgetError, ClusterError, ConfigError, RcdistError, RetriesError
from rcdist.lease import Lease
from rcdist.preflight import check_config, refusing_storage
from rcdist.printing import printed_log
from rcdist.storage import say
from rcdist.sweep.capacity import Capacity, Needs, count_room, describe_lack, find_needs, read_capacity
from rcdist.sweep.folder import SweepFolder
from rcdist.sweep.objectives import measure_alone, to_times, trial_costs
from rcdist.sweep.progress import Progress
from rcdist.sweep.proposals import BASELINE_SETTINGS, Proposals, find_cheapest, find_valid, resolve
from rcdist.sweep.publish import close_running, prune_checkpoints, write_results
from rcdist.sweep.results import SweepResult
from rcdist.sweep.samplers import GridSampler, OptunaSampler, RandomSampler, Sampler
from rcdist.sweep.settings import SweepConfig
from rcdist.sweep.space import Space, first_combinations, read_space
from rcdist.sweep.trial import Search, run_trial
from rcdist.sweep.trials import BASELINE, Journal, Trial, front_of
from rcdist.tracking.mlflow import check_server, start_or_continue
from rcdist.tracking.mlflow_runs import SWEEP
from rcdist.tracking.prices import PriceRow, resolve_price
from rcdist.tracking.tracker import RunStatus, Tracker
from rcdist.trainer import follow

logger = logging.getLogger("rcdist")

_COMBINATIONS_LOOKED_AT = 500
"""Of a space, before its first trial: is any a run, and does any fit."""


def sweep(config: SweepConfig, on_trial: Callable[[Trial], None] | None = None) -> SweepResult:
    """Search, or continue to search, for the front; blocks.

    Everything that can be wrong with the settings is found before a trial starts. The search is held (see Lease) for
    as long as it runs; whatever ends it, the results of the trials that are done are written.

    Args:
        config: the search.
        on_trial: called in this thread with each trial that has ended.

    Returns:
        The trials and their front.

    Raises:
        ConfigError: a setting is wrong, or the name is of another search.
        ClusterError: not one trial fits the cluster.
        BudgetError: a budget of the search is used up; the results stand.
        KeyboardInterrupt: a signal came; the results stand, and the same command goes on.
    """
    with preserved_environment(), ExitStack() as stack:
        if "://" in config.storage_path:
            rule = "a search needs a folder: its trials read one another's results there"
            raise ConfigError("storage_path", config.storage_path, rule, "Use a folder that all nodes share")
        config = config.model_copy(update={"storage_path": str(config.storage.resolve())})
        space = read_space(config.space)
        candidates = list(first_combinations(space, _COMBINATIONS_LOOKED_AT))
        find_valid(config, space, candidates)
        if config.sweep.sampler == "grid":
            next(space.grid())
        baseline = resolve(config, Trial(BASELINE, "T", settings=BASELINE_SETTINGS))
        check_config(baseline)
        folder = SweepFolder(config)
        with refusing_storage(config):
            stack.enter_context(Lease(folder.path, config.name))
            folder.check()
        check_server(config.tracking_uri, config.tracking.experiment, config.tracking.timeout_s)
        # Trials print what every run prints; what matters of it is in their folders.
        stack.enter_context(ray_session(config, log_to_driver=False))
        capacity = read_capacity(config)
        room = _find_room(config, space, candidates, baseline, capacity)
        use_gpu = find_needs(baseline, capacity, config.sweep.gpus_per_trial).gpus > 0
        price = resolve_price(config.cost, gpu_name() if use_gpu else None, config.cluster.cpus_per_worker)
        prepare_corpora(baseline, logger.info)
        with refusing_storage(config):
            folder.write()
        return _Sweep(config, space, folder, capacity, room, price, use_gpu).run(on_trial)


def _find_room(
    config: SweepConfig, space: Space, candidates: list[dict[str, Any]], baseline: JobConfig, capacity: Capacity
) -> int:
    """Return how many trials fit at one time, whichever they are.

    Raises:
        ClusterError: not one does, ever.
    """
    needs: list[Needs] = [find_needs(baseline, capacity, config.sweep.gpus_per_trial)]
    if any(name.startswith("cluster.") for values in candidates for name in values):
        for values in candidates:
            with contextlib.suppress(RcdistError):
                trial = resolve(config, Trial(-1, "", settings=space.settings(values)))
                needs.append(find_needs(trial, capacity, config.sweep.gpus_per_trial))
    rooms = [count_room(need, capacity) for need in needs]
    if not any(rooms):
        workers = baseline.cluster.num_workers
        remedy = "Use fewer workers, or a cluster that has them or can grow to them"
        raise ClusterError(
            "cluster.num_workers", workers, f"no trial fits: {describe_lack(needs[0], capacity)}", remedy
        )
    return min(min(room for room in rooms if room), config.sweep.concurrency or 10_000)


@dataclass(frozen=True)
class _Sweep:
    """Hold what is known of a search before its first trial."""

    config: SweepConfig
    space: Space
    folder: SweepFolder
    capacity: Capacity
    room: int
    price: PriceRow
    use_gpu: bool

    def run(self, on_trial: Callable[[Trial], None] | None) -> SweepResult:
        """Run the trials, then repeats; write the results whatever happens."""
        config, journal = self.config, Journal(self.folder.journal)
        tracker = self._open_parent()
        progress = Progress(config, journal, tracker, on_trial, self.folder)
        logger.info(progress.describe(self.room, self.capacity))
        status: RunStatus = "FAILED"
        try:
            self._search(journal, tracker, progress, seeds=0)
            if config.sweep.front_seeds and not self._is_over(journal):
                self._search(journal, tracker, progress, seeds=config.sweep.front_seeds)
            status = "KILLED" if self._is_over(journal) else "FINISHED"
        except (KeyboardInterrupt, SystemExit):
            status = "KILLED"
            close_running(config, journal.trials)
            raise
        finally:
            result = write_results(config, self.folder.path, journal.trials, self.price, tracker)
            prune_checkpoints(config, journal.trials)
            tracker.finish(status, timeout_s=3 * config.tracking.timeout_s)
        if self._is_over(journal):
            raise self._budget_error(journal)
        if not result.front:
            first = next((trial.reason for trial in result.trials if trial.reason), "there is no trial")
            rule = f"not one trial has finished; the first: {first}"
            raise RetriesError("sweep.trials", len(result.trials), rule, "Correct that, and choose another name")
        return result

    def _open_parent(self) -> Tracker:
        config = self.config
        tracker = start_or_continue(
            config.tracking_uri,
            config.tracking.experiment,
            config.name,
            self.folder.read("mlflow_run_id"),
            config=config.model_dump(mode="json"),
            facts={},
            tags={"kind": SWEEP},
            timeout_s=config.tracking.timeout_s,
        )
        self.folder.write(mlflow_run_id=tracker.run_id)
        return tracker

    def _search(self, journal: Journal, tracker: Tracker, progress: "Progress", *, seeds: int) -> None:
        """Let Tune run trials until there are no more: of the sampler, or repeats with other seeds."""
        config = self.config
        is_measured = config.sweep.cost_from == "benchmark"
        proposals = Proposals(
            config,
            self.space,
            self._sampler(journal),
            journal,
            self.capacity,
            self._costs_of,
            batch=self.room if is_measured else None,
            is_over=lambda: self._is_over(journal),
            only_repeats=seeds > 0,
        )
        if seeds:
            again = [trial for trial in journal.trials if trial.number == BASELINE]
            again += [t for t in front_of(journal.trials, config.sweep.objectives) if t.number != BASELINE]
            proposals.repeat(again, seeds)
        search = Search(
            folder=str(self.folder.path),
            objectives=tuple(config.sweep.objectives),
            stop_dominated=config.sweep.stop_dominated,
            parent_run_id=tracker.run_id,
            budget_usd=config.sweep.budget_usd,
            budget_device_s=config.sweep.budget_device_s,
        )
        tune_folder = self.folder.path / "tune"
        try:
            follow(lambda: fit(config, proposals, search, self.room, str(tune_folder)), progress.poll)
        finally:
            progress.close()
            # The journal is the state of a search. Tune's own, which no later job reads, is of this job's processes.
            shutil.rmtree(tune_folder, ignore_errors=True)

    def _sampler(self, journal: Journal) -> Sampler:
        settings = self.config.sweep
        if settings.sampler == "grid":
            return GridSampler(self.space)
        if settings.sampler == "random":
            return RandomSampler(self.space, settings.seed)
        replayed = [trial.values for trial in journal.trials if trial.values and trial.repeats is None]
        candidates = list(first_combinations(self.space, _COMBINATIONS_LOOKED_AT))
        first = find_cheapest(self.config, self.space, candidates, self._costs_of)
        return OptunaSampler(self.space, settings.objectives, settings.seed, replayed, first)

    def _costs_of(self, config: JobConfig) -> dict[str, float]:
        if self.config.sweep.cost_from == "flops":
            return trial_costs(config, self.price)
        measured = measure_alone(config, self.use_gpu)
        reference = self.folder.read("reference") or measured
        self.folder.write(reference=reference)
        return trial_costs(config, self.price, to_times(measured, reference))

    def _used(self, journal: Journal) -> dict[str, float]:
        return {
            "budget_usd": sum(trial.used_usd for trial in journal.trials),
            "budget_device_s": sum(trial.used_s for trial in journal.trials),
        }

    def _is_over(self, journal: Journal) -> bool:
        """Say whether a budget of the whole search is used up."""
        allowed = {name: getattr(self.config.sweep, name) for name in ("budget_usd", "budget_device_s")}
        used = self._used(journal)
        return any(limit is not None and used[name] >= limit for name, limit in allowed.items())

    def _budget_error(self, journal: Journal) -> BudgetError:
        used = self._used(journal)
        name = next(n for n in used if (limit := getattr(self.config.sweep, n)) is not None and used[n] >= limit)
        rule = f"used up by {len(journal.trials)} trials: {used[name]:.6g}; the front of what is done is written"
        return BudgetError(f"sweep.{name}", getattr(self.config.sweep, name), rule, "Raise it to go on")


def fit(config: SweepConfig, proposals: Proposals, search: Search, room: int, folder: str) -> None:
    """Run Ray Tune until the searcher has no more trials; blocks."""
    # Each asked for at import: no boxes of Tune's own between our lines; relative paths mean what they mean here.
    os.environ |= {"RAY_AIR_NEW_OUTPUT": "0", "RAY_CHDIR_TO_TRIAL_DIR": "0", "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1"}
    from ray import tune

    # At its end Tune looks for the files of loggers that write none.
    logging.getLogger("ray.tune.analysis.experiment_analysis").setLevel(logging.ERROR)
    trainable = tune.with_resources(
        tune.with_parameters(run_trial, search=search),
        lambda proposal: tune.PlacementGroupFactory([dict(proposal["bundle"])]),
    )
    tuner = tune.Tuner(
        trainable,
        tune_config=tune.TuneConfig(
            search_alg=proposals,
            num_samples=-1,
            max_concurrent_trials=room,
            # A process that has trained alone trains the next trial too: its imports are done.
            reuse_actors=True,
        ),
        run_config=tune.RunConfig(
            name="tune",
            storage_path=folder,
            verbose=0,
            failure_config=tune.FailureConfig(max_failures=config.cluster.max_failures),
        ),
    )
    tuner.fit()


def launch_sweep(config: SweepConfig) -> int:
    """Run a search, print what goes on, and return the exit code.

    Raises:
        RcdistError: what is wrong, with its exit code.
    """
    with printed_log():
        result = sweep(config)
        say(result.describe())
    return EXIT_DONE
