"""What a seed draws: always the same, one or two faults, every kind sooner or later; one run with what it draws."""

from collections import Counter
from pathlib import Path

import pytest

from rcdist.chaos.job import STEPS
from rcdist.chaos.random_faults import FROM_OUTSIDE, IN_WORKERS, draw
from rcdist.chaos.runner import Runner, local_cluster
from rcdist.train.fault_injection import InjectedFault
from tests.conftest import ROOT


def test_a_seed_always_draws_the_same_and_all_seeds_together_everything() -> None:
    drawn = [draw(seed) for seed in range(1000)]
    assert drawn == [draw(seed) for seed in range(1000)]
    assert {len(strikes) for strikes in drawn} == {1, 2}
    kinds = Counter(strike.kind for strikes in drawn for strike in strikes)
    assert set(kinds) == {*IN_WORKERS, *FROM_OUTSIDE} and min(kinds.values()) > 50
    for strikes in drawn:
        for strike in strikes:
            assert 0 <= strike.step <= STEPS and strike.rank in (0, 1)
            if strike.kind in IN_WORKERS:
                assert InjectedFault.parse(strike.injected).first == strike.step > 0


@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.timeout(900)
def test_runs_survive_what_some_seeds_draw(tmp_path: Path) -> None:
    with local_cluster() as cluster:
        runner = Runner(ROOT / "jobs" / "pretrain.py", tmp_path, [], cluster)
        unbroken = runner.run_unbroken()
        for seed in (3, 4):
            verdict = runner.run_drawn(seed, *unbroken)
            assert not verdict.failures, "\n".join([verdict.fault, *verdict.failures])
