"""Results: the tables are the trials, the report has what it promises, checkpoints of the front are kept."""

import csv
from pathlib import Path

import pytest

from rcdist.report.runs import find_baseline
from rcdist.storage import write_file
from rcdist.sweep.page import build_report
from rcdist.sweep.proposals import resolve
from rcdist.sweep.publish import prune_checkpoints
from rcdist.sweep.results import describe_trial, find_areas, hypervolumes, read_result, report_runs, write_tables
from rcdist.sweep.trials import Trial
from rcdist.tracking.prices import PriceRow
from tests.sweep.small import finished, small_sweep

PRICE = PriceRow("x", "spot", usd_per_device_hour=3600.0, peak_flops=1e9, watts=1.0, source="")
OBJECTIVES = ["eval/bits_per_byte", "cost/usd"]
TRIALS = [
    finished(0, 2.0, 1.0),
    finished(1, 2.2, 0.5, plan="cG@a"),
    finished(2, 1.9, 1.1),
    finished(3, 2.3, 0.9, plan="T G", settings={"reservoir.plan": "T G", "reservoir.input_scaling": 0.70710678}),
    Trial(4, "G", values={"a": 1}, status="failed", reason="diverged, it says"),
    Trial(5, "U", values={"a": 1}, status="infeasible", reason="needs 64 GPUs"),
    finished(6, 2.1, 1.0, plan="T", repeats=0, seed=1),
    finished(7, 2.35, 0.5, repeats=1, seed=1, plan="cG@a"),
]


def rows(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def test_tables(tmp_path: Path) -> None:
    config = small_sweep(tmp_path)
    write_tables(config, read_result(config, tmp_path, TRIALS))
    trials = rows(tmp_path / "trials.csv")
    assert [row["trial"] for row in trials] == [str(i) for i in range(8)]
    assert [row["status"] for row in trials[:6]] == ["finished"] * 4 + ["failed", "infeasible"]
    assert trials[4]["reason"] == "diverged, it says"
    assert trials[3]["eval/bits_per_byte"] == "2.3"
    assert float(trials[1]["aucc"]) > 0
    front = rows(tmp_path / "front.csv")
    assert [(row["trial"], row["cost/usd"]) for row in front] == [("2", "1.1"), ("0", "1.0"), ("1", "0.5")]


def test_hypervolume_grows_trial_by_trial_and_is_a_share() -> None:
    volumes = hypervolumes(TRIALS, OBJECTIVES)
    box = 2.2 * 1.1
    assert volumes[0] == pytest.approx(0.2 * 0.1 / box)
    assert volumes[1] == volumes[0]  # 2.2 is not below the reference
    assert volumes == sorted(volumes)
    assert len(volumes) == 4
    assert hypervolumes(TRIALS[1:], OBJECTIVES) == []
    assert hypervolumes(TRIALS, OBJECTIVES[:1])[-1] == pytest.approx((2.2 - 1.9) / 2.2)


def test_areas_are_compared_up_to_the_cheapest_trials_cost() -> None:
    areas = find_areas(TRIALS, OBJECTIVES)
    # Trial 1 ends at cost 50; trial 0 (100) has by then an area over 33 to 50.
    assert areas[1] == pytest.approx((2.95 + 2.45) / 2)
    assert areas[0] == pytest.approx((3.0 + (3.0 - 0.5 * (50 - 100 / 3) / (100 / 3))) / 2)


def test_describe() -> None:
    assert describe_trial(TRIALS[3]) == "T G input_scaling=0.707"
    assert describe_trial(TRIALS[6]) == "T seed +1"
    settings = {"reservoir.topology": {"c": "dense", "G": "hadamard"}, "reservoir.leak_rate": 0.1}
    assert describe_trial(finished(9, 1, 1, plan="T G", settings=settings)) == "T G topology=G:hadamard leak_rate=0.1"


def test_report_has_front_curves_repeats_and_failures(tmp_path: Path) -> None:
    config = small_sweep(tmp_path)
    result = read_result(config, tmp_path, TRIALS)
    runs = report_runs(config, TRIALS, PRICE)
    baseline = find_baseline(runs)
    assert baseline is not None and baseline.name == "0"
    page = build_report(config, result, runs, TRIALS[0])
    for text in ("Front, repeated", "Hypervolume", "Curves over cost", "diverged, it says", "needs 64 GPUs", "cG@a"):
        assert text in page
    assert "+0.2250" in page  # the mean of 2.2 - 2.0 and 2.35 - 2.1
    assert "src=" not in page.partition("</head>")[2]
    table = result.describe()
    assert "6 finished, 1 failed, 1 infeasible" in table


def test_the_baseline_is_shown_where_it_is_not_on_the_front(tmp_path: Path) -> None:
    better = [*TRIALS, finished(8, 1.8, 0.4)]
    text = read_result(small_sweep(tmp_path), tmp_path, better).describe()
    assert "T  (baseline, not on the front)" in text
    assert "no trial has finished" in read_result(small_sweep(tmp_path), tmp_path, TRIALS[4:6]).describe()


@pytest.mark.parametrize(("keep", "left"), [("front", {0, 1, 2}), ("all", {0, 1, 2, 3})])
def test_checkpoints_of_front_and_baseline_are_kept(tmp_path: Path, keep: str, left: set[int]) -> None:
    config = small_sweep(tmp_path, keep_checkpoints=keep)
    for trial in TRIALS[:4]:
        folder = resolve(config, trial).run_dir / "step-00000012"
        folder.mkdir(parents=True)
        write_file(folder / "manifest.json", "{}")
        write_file(folder.parent / "metrics.jsonl", "")
    prune_checkpoints(config, TRIALS)
    kept = {trial.number for trial in TRIALS[:4] if (resolve(config, trial).run_dir / "step-00000012").exists()}
    assert kept == left
    assert all((resolve(config, trial).run_dir / "metrics.jsonl").exists() for trial in TRIALS[:4])
