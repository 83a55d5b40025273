"""What Tune is given: the baseline first, nothing invalid, nothing twice, and after a kill what was left."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.tune.search import Searcher

from rcdist.config import JobConfig
from rcdist.errors import ConfigError
from rcdist.sweep.capacity import Capacity
from rcdist.sweep.proposals import Proposals, find_cheapest, find_valid, resolve
from rcdist.sweep.samplers import GridSampler, RandomSampler
from rcdist.sweep.settings import SweepConfig
from rcdist.sweep.space import Values, read_space
from rcdist.sweep.trials import OUTCOME, Journal, Trial, identify
from tests.sweep.small import GRID, small_sweep

LAPTOP = Capacity(cpus=2, gpus=0, memory=16e9, node_cpus=2, node_gpus=0)


class Scripted:
    """A sampler that gives what it is told to, and remembers what it hears."""

    def __init__(self, script: Sequence[Values]) -> None:
        self.script, self.heard = list(script), dict[str, Any]()
        self.asked = 0

    def ask(self) -> tuple[str, Values] | None:
        if not self.script:
            return None
        self.asked += 1
        return str(self.asked), self.script.pop(0)

    def tell(self, key: str, point: Sequence[float] | None) -> None:
        self.heard[key] = point

    def replay(self, values: Values) -> str:
        self.asked += 1
        return str(self.asked)


def costs_of(config: JobConfig) -> dict[str, float]:
    return {"cost/usd": float(len(config.reservoir.plan))}


def proposals(config: SweepConfig, sampler: Any, path: Path, **more: Any) -> tuple[Proposals, Journal]:
    journal = Journal(path / "trials.jsonl")
    return Proposals(config, read_space(config.space), sampler, journal, LAPTOP, costs_of, **more), journal


def end(found: Proposals, journal: Journal, trial_id: str, number: int, quality: float) -> None:
    trial = next(trial for trial in journal.trials if trial.number == number)
    ended = trial.ended(status="finished", qualities={"eval/bits_per_byte": quality})
    found.on_trial_complete(trial_id, {OUTCOME: json.dumps(asdict(ended))})


def suggest_all(found: Proposals, most: int = 50) -> list[dict[str, Any]]:
    rows = []
    for i in range(most):
        row = found.suggest(f"t{i}")
        if row == Searcher.FINISHED:
            return rows
        assert isinstance(row, dict)
        rows.append(row)
    raise AssertionError("it does not end")


def number_of(row: dict[str, Any]) -> int:
    number: int = json.loads(row["trial"])["number"]
    return number


def plan_of(row: dict[str, Any]) -> str:
    plan: str = yaml.safe_load(row["settings"])["reservoir"]["plan"]
    return plan


def test_baseline_first_then_the_grid(tmp_path: Path) -> None:
    config = small_sweep(tmp_path, GRID, trials=None, sampler="grid")
    found, journal = proposals(config, GridSampler(read_space(GRID)), tmp_path)
    rows = suggest_all(found)
    assert [plan_of(row) for row in rows] == ["T", "c", "T c", "G", "T G"]
    assert [number_of(row) for row in rows] == [0, 1, 2, 3, 4]
    assert [yaml.safe_load(row["settings"])["name"] for row in rows] == [f"s-{i:03d}" for i in range(5)]
    assert all(trial.status == "running" and trial.costs for trial in journal.trials)


def test_no_more_than_asked_for(tmp_path: Path) -> None:
    config = small_sweep(tmp_path, trials=4, sampler="random")
    found, _ = proposals(config, RandomSampler(read_space(config.space), 0), tmp_path)
    assert len(suggest_all(found)) == 4


def test_what_is_no_run_is_never_proposed_and_equal_runs_run_once(tmp_path: Path) -> None:
    space = {"reservoir.plan": ["c", "f", "T", "c c"], "reservoir.leak_rate": ["trained", 0.1]}
    script = [
        {"reservoir.plan": "f", "reservoir.leak_rate": 0.1},  # names what leak_rate removes
        {"reservoir.plan": "c", "reservoir.leak_rate": 0.1},
        {"reservoir.plan": "c c", "reservoir.leak_rate": 0.1},  # the same over four blocks
        {"reservoir.plan": "T", "reservoir.leak_rate": "trained"},  # the baseline
    ]
    sampler = Scripted(script)
    found, journal = proposals(small_sweep(tmp_path, space), sampler, tmp_path)
    first = found.suggest("a")
    end(found, journal, "a", number_of(first), 2.0)
    second = found.suggest("b")
    end(found, journal, "b", number_of(second), 1.5)
    assert found.suggest("c") == Searcher.FINISHED
    assert [plan_of(row) for row in (first, second)] == ["T", "c"]
    # Invalid: nothing; the run: its own point; and those that are known at once what is known of them.
    assert sampler.heard == {"1": None, "2": (1.5, 1.0), "3": (1.5, 1.0), "4": (2.0, 1.0)}


def test_a_topology_that_fits_no_shape_is_never_proposed(tmp_path: Path) -> None:
    space = {"reservoir.topology": ["dense", "block"], "reservoir.plan": ["G"]}
    config = small_sweep(tmp_path, space, trials=None, sampler="grid")
    found, _ = proposals(config, GridSampler(read_space(space)), tmp_path)
    assert [plan_of(row) for row in suggest_all(found)] == ["T", "G"]


def test_after_a_kill_what_was_left_comes_first_and_nothing_finished_comes_again(tmp_path: Path) -> None:
    config = small_sweep(tmp_path, GRID, trials=None, sampler="grid")
    found, journal = proposals(config, GridSampler(read_space(GRID)), tmp_path)
    for i in range(3):
        found.suggest(str(i))
    end(found, journal, "0", 0, 2.0)
    end(found, journal, "2", 2, 1.9)
    again, _ = proposals(config, GridSampler(read_space(GRID)), tmp_path)
    assert [number_of(row) for row in suggest_all(again)] == [1, 3, 4]


def test_a_sampler_that_learns_hears_of_the_job_before(tmp_path: Path) -> None:
    space = {"reservoir.plan": ["c", "G", "o", "U"]}
    script = [{"reservoir.plan": "c"}, {"reservoir.plan": "G"}]
    found, journal = proposals(small_sweep(tmp_path, space), Scripted(script), tmp_path)
    for i in range(3):
        found.suggest(str(i))
    end(found, journal, "1", 1, 1.7)
    sampler = Scripted([{"reservoir.plan": "U"}])
    again, journal = proposals(small_sweep(tmp_path, space), sampler, tmp_path)
    assert sampler.heard == {"1": (1.7, 1.0)}  # the second was asked for too, and is running still
    rows = suggest_all(again)
    assert [plan_of(row) for row in rows] == ["T", "G", "U"]
    end(again, journal, "t1", 2, 1.6)
    assert sampler.heard["2"] == (1.6, 1.0)


def test_a_lost_process_is_a_failed_trial(tmp_path: Path) -> None:
    config = small_sweep(tmp_path, GRID, trials=None, sampler="grid")
    found, journal = proposals(config, GridSampler(read_space(GRID)), tmp_path)
    found.suggest("a")
    found.on_trial_complete("a", None, error=True)
    assert journal.trials[0].status == "failed"
    assert "max_failures=3" in journal.trials[0].reason


def test_what_never_fits_is_infeasible_with_the_numbers(tmp_path: Path) -> None:
    space = {"cluster.num_workers": [1, 64], "reservoir.plan": ["c"]}
    config = small_sweep(tmp_path, space, trials=None, sampler="grid")
    found, journal = proposals(config, GridSampler(read_space(space)), tmp_path)
    assert [number_of(row) for row in suggest_all(found)] == [0, 1]
    assert journal.trials[2].status == "infeasible"
    assert journal.trials[2].reason == "a trial needs 64 CPUs, the cluster has or can grow to 2"


def test_costs_that_are_measured_are_measured_while_nothing_runs(tmp_path: Path) -> None:
    config = small_sweep(tmp_path, GRID, trials=None, sampler="grid")
    found, journal = proposals(config, GridSampler(read_space(GRID)), tmp_path, batch=2)
    assert number_of(found.suggest("0")) == 0
    assert len(journal.trials) == 2  # both of the batch are measured before the first starts
    assert number_of(found.suggest("1")) == 1
    assert found.suggest("2") is None
    end(found, journal, "0", 0, 2.0)
    assert found.suggest("2") is None
    end(found, journal, "1", 1, 2.0)
    assert number_of(found.suggest("2")) == 2


def test_a_cost_that_cannot_be_measured_is_the_end_of_that_trial_only(tmp_path: Path) -> None:
    def measure(config: JobConfig) -> dict[str, float]:
        if config.reservoir.plan == "c":
            raise MemoryError("no room")
        return {"cost/usd": 1.0}

    config = small_sweep(tmp_path, GRID, trials=None, sampler="grid")
    journal = Journal(tmp_path / "trials.jsonl")
    sampler = GridSampler(read_space(GRID))
    found = Proposals(config, read_space(GRID), sampler, journal, LAPTOP, measure)
    assert [plan_of(row) for row in suggest_all(found)] == ["T", "T c", "G", "T G"]
    assert journal.trials[1].status == "failed"
    assert journal.trials[1].reason == "its cost cannot be found: MemoryError: no room"


def test_nothing_starts_over_budget(tmp_path: Path) -> None:
    config = small_sweep(tmp_path, GRID, trials=None, sampler="grid")
    found, _ = proposals(config, GridSampler(read_space(GRID)), tmp_path, is_over=lambda: True)
    assert found.suggest("0") == Searcher.FINISHED


def test_repeats_add_to_every_seed_and_are_not_done_twice(tmp_path: Path) -> None:
    config = small_sweep(tmp_path, GRID, trials=None, sampler="grid")
    found, journal = proposals(config, Scripted([]), tmp_path, only_repeats=True)
    plans = [Trial(0, "T", settings={"reservoir.plan": "T"}), Trial(1, "c", settings={"reservoir.plan": "c"})]
    for trial in plans:
        journal.put(trial.ended(status="finished"))
    found.repeat(plans, 2)
    rows = suggest_all(found)
    resolved = [yaml.safe_load(row["settings"]) for row in rows]
    assert [(r["reservoir"]["plan"], r["seed"], r["data"]["seed"], r["reservoir"]["seed"]) for r in resolved] == [
        ("T", 1, 1, 1),
        ("c", 1, 1, 1),
        ("T", 2, 2, 2),
        ("c", 2, 2, 2),
    ]
    assert [(trial.repeats, trial.seed) for trial in journal.trials[2:]] == [(0, 1), (1, 1), (0, 2), (1, 2)]
    again, _ = proposals(config, Scripted([]), tmp_path, only_repeats=True)
    again.repeat(plans, 3)
    assert len(suggest_all(again)) == 4 + 2  # those that were running, and the third seed


def test_resolve_adds_seeds_by_letter(tmp_path: Path) -> None:
    config = small_sweep(tmp_path)
    trial = Trial(3, "c", settings={"reservoir.plan": "c", "reservoir.seed": {"c": 5}}, seed=2)
    found = resolve(config, trial)
    assert found.reservoir.seed == {"c": 7}
    assert found.name == "s-003"
    assert identify(found) != identify(resolve(config, trial.ended(seed=0)))


def test_a_space_without_a_valid_combination_is_refused(tmp_path: Path) -> None:
    space = {"reservoir.plan": ["f", "f@a"], "reservoir.leak_rate": [0.1]}
    config = small_sweep(tmp_path, space)
    parsed = read_space(space)
    with pytest.raises(ConfigError, match=r"no combination of its values is a run, for .*names f, which"):
        find_valid(config, parsed, list(parsed.grid()))


def test_the_cheapest_combination_is_known_without_training(tmp_path: Path) -> None:
    space = {"reservoir.plan": ["c", "cG", "T c c"], "reservoir.leak_rate": ["trained", 0.1]}
    config = small_sweep(tmp_path, space)
    parsed = read_space(space)
    found = find_cheapest(config, parsed, list(parsed.grid()), lambda trial: {"cost/usd": -len(trial.reservoir.plan)})
    assert found == [{"reservoir.plan": "T c c", "reservoir.leak_rate": "trained"}]
    one = small_sweep(tmp_path, space, objectives=["eval/bits_per_byte"])
    assert find_cheapest(one, parsed, list(parsed.grid()), costs_of) == []
    measured = small_sweep(tmp_path, space, cost_from="benchmark")
    assert find_cheapest(measured, parsed, list(parsed.grid()), costs_of) == []
