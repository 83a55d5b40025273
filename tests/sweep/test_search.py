"""What the default sampler is worth: against random search of equal budget on the recorded surrogate."""

from pathlib import Path

import pytest

from rcdist.config import JobConfig
from rcdist.config.cli import parse_cli
from rcdist.report.pareto import hypervolume
from rcdist.sweep.objectives import trial_costs
from rcdist.sweep.proposals import Proposals, find_cheapest
from rcdist.sweep.results import hypervolumes
from rcdist.sweep.samplers import OptunaSampler, RandomSampler, Sampler
from rcdist.sweep.settings import SweepConfig
from rcdist.sweep.space import first_combinations, read_space
from rcdist.sweep.trials import Journal
from rcdist.tracking.prices import PriceRow
from tests.conftest import ROOT
from tests.sweep.surrogate import Surrogate
from tests.sweep.test_proposals import LAPTOP, end, number_of

PRESETS = ROOT / "jobs" / "configs" / "sweeps"
PRICE = PriceRow("x", "spot", usd_per_device_hour=0.01, peak_flops=4e10, watts=1.0, source="")
BASELINE_QUALITY = 1.9553
"""Of plan T, in the same recording."""


def search(config: SweepConfig, sampler: Sampler, surrogate: Surrogate, folder: Path) -> float:
    """Search one trial at a time and return the hypervolume of the front."""

    def costs_of(trial: JobConfig) -> dict[str, float]:
        return trial_costs(trial, PRICE)

    folder.mkdir()
    journal = Journal(folder / "trials.jsonl")
    proposals = Proposals(config, read_space(config.space), sampler, journal, LAPTOP, costs_of)
    for i in range(config.sweep.trials or 0):
        proposed = proposals.suggest(str(i))
        trial = journal.trials[number_of(proposed)]
        quality = surrogate.predict(trial.values) if trial.values else BASELINE_QUALITY
        end(proposals, journal, str(i), trial.number, quality)
    return hypervolumes(journal.trials, config.sweep.objectives)[-1]


@pytest.mark.exhaustive
def test_optuna_beats_random_search_on_the_recorded_surrogate(tmp_path: Path) -> None:
    config = parse_cli(SweepConfig, ["--config", "tiny", f"--storage_path={tmp_path}"], prog="test", presets=PRESETS)
    space, surrogate = read_space(config.space), Surrogate()
    first = find_cheapest(config, space, list(first_combinations(space, 500)), lambda trial: trial_costs(trial, PRICE))
    won = 0
    for seed in range(10):
        chance = search(config, RandomSampler(space, seed), surrogate, tmp_path / f"random-{seed}")
        optuna = OptunaSampler(space, config.sweep.objectives, seed, first=first)
        won += search(config, optuna, surrogate, tmp_path / f"optuna-{seed}") > chance
    assert won >= 8


def test_a_better_front_has_the_larger_hypervolume() -> None:
    assert hypervolume([(1.0, 2.0), (2.0, 1.0)], (3.0, 3.0)) > hypervolume([(1.0, 2.0)], (3.0, 3.0))
