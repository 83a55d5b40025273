"""What is done with the results of a search: files and MLflow are written, checkpoints of no more use deleted."""

import logging
import shutil
from collections.abc import Sequence
from pathlib import Path

from rcdist.record import mlflow_run_id
from rcdist.report.picture import draw_picture
from rcdist.storage import try_write
from rcdist.sweep.page import build_report
from rcdist.sweep.proposals import resolve
from rcdist.sweep.results import SweepResult, count_tokens, find_areas, read_result, report_runs, write_tables
from rcdist.sweep.settings import SweepConfig
from rcdist.sweep.trials import BASELINE, Trial, front_of, searched
from rcdist.tracking.mlflow_runs import describe_run, log_values, terminate
from rcdist.tracking.prices import PriceRow
from rcdist.tracking.tracker import Tracker

logger = logging.getLogger("rcdist")


def write_results(
    config: SweepConfig, folder: Path, trials: Sequence[Trial], price: PriceRow, tracker: Tracker
) -> SweepResult:
    """Write the files of a search and store them in MLflow; what cannot be written is said, and raises nothing."""
    result = read_result(config, folder, trials)
    write_tables(config, result)
    baseline = next((trial for trial in searched(trials) if trial.number == BASELINE), None)
    runs = report_runs(config, trials, price)
    if result.front:
        title = f"{config.name}: {len(searched(trials))} trials of {count_tokens(config):,} tokens"
        try:
            draw_picture(folder / "front.png", [run for run in runs if not run.seed], config.sweep.objectives, title)
        except OSError as error:
            logger.warning("%s cannot be written: %s", folder / "front.png", error)
        page = build_report(config, result, runs, baseline)
        try_write(folder / "report.html", page, durably=False)
    for name in ("front.csv", "trials.csv", "front.png", "report.html"):
        if (folder / name).exists():
            tracker.log_artifact(folder / name)
    describe_run(config.tracking_uri, tracker.run_id, f"```\n{result.describe()}\n```")
    areas = find_areas(trials, config.sweep.objectives)
    done = {t.mlflow_run_id: {"sweep/aucc": areas[t.number]} for t in trials if t.number in areas and t.mlflow_run_id}
    log_values(config.tracking_uri, done, step=config.train.steps)
    return result


def prune_checkpoints(config: SweepConfig, trials: Sequence[Trial]) -> None:
    """Delete the checkpoints of trials that nobody will go on from; their logs and settings stay."""
    if config.sweep.keep_checkpoints == "all":
        return
    kept = {trial.number for trial in front_of(trials, config.sweep.objectives)} | {BASELINE}
    for trial in trials:
        if trial.number not in kept and trial.status in ("finished", "stopped"):
            for folder in resolve(config, trial).run_dir.glob("step-*"):
                shutil.rmtree(folder, ignore_errors=True)


def close_running(config: SweepConfig, trials: Sequence[Trial]) -> None:
    """Give the MLflow runs of trials that are still running the status KILLED: their processes end with this one."""
    for trial in trials:
        if trial.status == "running":
            run_id = mlflow_run_id(resolve(config, trial).run_dir)
            if run_id:
                terminate(config.tracking_uri, run_id, "KILLED")
