"""A comparison of what MLflow really has: groups, pairs by seed, intervals that are scipy's, a page that draws."""

from pathlib import Path
from typing import Any

import pytest
from scipy import stats

from rcdist import compare
from rcdist.config import JobConfig
from rcdist.errors import ConfigError
from rcdist.estimate.cost import describe_cost
from rcdist.tracking.mlflow import check_server, start_or_continue
from tests.report.chromium import browse, needs_chromium

QUALITIES = {
    ("T", "dense"): {0: 2.00, 1: 2.10, 2: 2.05},
    ("c@a", "dense"): {0: 2.04, 1: 2.11, 2: 2.12},
    ("G", "hadamard"): {0: 1.98, 1: 2.09},
}


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return a store with three plans, up to three seeds each, and a run that failed."""
    uri = f"sqlite:///{tmp_path_factory.mktemp('store')}/mlflow.db"
    check_server(uri, "rcdist", 10.0)
    for (plan, topology), qualities in QUALITIES.items():
        for seed, quality in qualities.items():
            record(uri, plan, topology, seed, quality)
    record(uri, "U", "dense", 0, 3.0, status="FAILED")
    return uri


def record(uri: str, plan: str, topology: str, seed: int, quality: float, status: Any = "FINISHED") -> None:
    model = {"num_layers": 2, "width": 32, "glu_width": 64, "vocab_size": 300}
    reservoir = {"plan": plan, "topology": topology, "seed": seed}
    name = f"{plan.replace('@', '')}-{seed}"
    config = JobConfig(name=name, seed=seed, model=model, reservoir=reservoir, data={"seed": seed})
    facts = {"cost": {key: value for key, value in describe_cost(config).items() if key != "matrices"}}
    tracker = start_or_continue(
        uri, "rcdist", name, None, config=config.model_dump(mode="json"), facts=facts, tags={}, timeout_s=10.0
    )
    for step in (5, 10):
        used = {"train/tokens": 100.0 * step, "cost/device_s": 2.0 * step, "cost/usd": 0.1 * step}
        tracker.log(step, {**used, "eval/bits_per_byte": quality + (10 - step) / 10}, step)
    assert tracker.finish(status, 30.0)


NAMES = [f"{plan}-{seed}" for plan, seeds in (("T", 3), ("ca", 3), ("G", 2)) for seed in range(seeds)]


def test_groups_are_paired_by_seed_with_scipys_intervals(uri: str) -> None:
    groups = compare.group(compare.read(uri, "rcdist", NAMES, 10.0))
    assert [item.label.split()[0] for item in groups] == ["T", "G", "c@a"]
    base, hadamard, dense = groups
    assert base.to_baseline is None
    pairs = [QUALITIES["c@a", "dense"][seed] for seed in range(3)], [QUALITIES["T", "dense"][seed] for seed in range(3)]
    expected = stats.ttest_rel(*pairs).confidence_interval(0.95)
    assert dense.to_baseline is not None
    assert (dense.to_baseline.low, dense.to_baseline.high) == pytest.approx((expected.low, expected.high))
    assert hadamard.to_baseline is not None
    assert (hadamard.to_baseline.pairs, hadamard.to_baseline.mean) == (2, pytest.approx(-0.015))
    assert hadamard.label == "G topology=hadamard"


def test_curves_are_over_tokens_time_and_money(uri: str) -> None:
    (run,) = compare.read(uri, "rcdist", ["T-0"], 10.0)
    assert run.is_baseline
    assert [(p.tokens, p.device_s, p.usd, p.quality) for p in run.curve] == [
        (500.0, 10.0, 0.5, 2.5),
        (1000.0, 20.0, 1.0, 2.0),
    ]
    assert run.values["model/train_flops"] > run.values["model/prefill_flops"] > 0


def test_table_and_json(uri: str) -> None:
    runs = compare.read(uri, "rcdist", [*NAMES, "U-0"], 10.0)
    table = compare.format_table(runs)
    assert "not finished: U-0 (failed)" in table
    assert "+0.0400" in table
    assert "-0.0150" in table
    found = compare.describe(runs)
    assert found["baseline"] == "T-0"
    assert [row["seeds"] for row in found["groups"]] == [[0, 1, 2], [0, 1], [0, 1, 2]]
    assert found["unfinished"] == {"U-0": "failed"}


def test_without_a_baseline_there_are_no_differences(uri: str) -> None:
    groups = compare.group(compare.read(uri, "rcdist", ["ca-0", "G-0"], 10.0))
    assert [item.to_baseline for item in groups] == [None, None]


def test_an_unknown_name_names_the_nearest(uri: str) -> None:
    with pytest.raises(
        ConfigError, match=r'names="T-00": .* has no run and no search of that name. The nearest one is'
    ):
        compare.read(uri, "rcdist", ["T-00"], 10.0)


@needs_chromium
@pytest.mark.slow
def test_the_page_in_a_browser(uri: str, tmp_path: Path) -> None:
    page = tmp_path / "comparison.html"
    page.write_text(compare.build_report("A comparison", compare.read(uri, "rcdist", [*NAMES, "U-0"], 10.0)))
    dom = browse(page, tmp_path / "profile", dark=True)
    assert 'data-dressed="#e8e8e8"' in dom
    for text in (
        "paper: -19 % parameters",
        "paper: -9.9 % training",
        "paper: -8.0 % inference",
        "USD",
        "device seconds",
    ):
        assert text in dom
