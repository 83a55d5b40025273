"""What MLflow has of a study is read, paired by seed; intervals are scipy's; what has not ended is left out."""

from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from rcdist.errors import ConfigError
from rcdist.study.results import QUALITY, StudyResult, read_study
from tests.study.small import QUALITIES, small_study


def test_arms_have_their_finished_runs_by_seed(result: StudyResult) -> None:
    assert list(result.arms) == ["T", "U", "narrow"]
    assert {name: arm.values[QUALITY] for name, arm in result.arms.items()} == QUALITIES
    assert result.arms["T"].parameters["stored"] > result.arms["U"].parameters["stored"]
    assert result.arms["U"].plan == "U@a"
    assert (result.texts, result.devices) == (["sea"], {"cpu": "a processor"})


def test_differences_are_paired_by_seed(result: StudyResult) -> None:
    base, arm, other = result.arms.values()
    assert result.baseline_of(base) is None
    assert (result.baseline_of(arm), result.baseline_of(other)) == (base, arm)
    own, of_base = (np.array(list(QUALITIES[name].values())) for name in ("U", "T"))
    expected = stats.ttest_1samp(own / of_base - 1, 0).confidence_interval(0.95)
    found = arm.to(base, QUALITY)
    assert found is not None and found.pairs == 3
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    assert other.to(arm, QUALITY).pairs == 2  # type: ignore[union-attr]
    points = arm.to(base, "evaluate/blimp/accuracy", relative=False)
    assert points is not None and points.mean == pytest.approx(0)
    assert base.to(base, QUALITY) is None
    assert arm.to(base, "evaluate/none/bits_per_byte") is None


def test_curves_are_compared_at_equal_tokens(result: StudyResult) -> None:
    points = result.arms["U"].over_tokens(result.arms["T"])
    assert [tokens for tokens, _ in points] == [300, 600]
    assert points[0][1].mean == pytest.approx(np.mean([2.32 / 2.30 - 1, 2.41 / 2.40 - 1, 2.39 / 2.35 - 1]))


def test_area_under_the_curve_is_over_measured_time(result: StudyResult) -> None:
    """U takes 0.8 of T's time: it is done at 4.8 s, where T's curve, from 3 s to 6 s, has come 0.6 of its way."""
    found = result.arms["U"].areas(result.arms["T"], "cpu")
    assert found is not None
    own = np.mean([q + 0.15 for q in QUALITIES["U"].values()])
    base = np.mean([(q + 0.3 + q + 0.12) / 2 for q in QUALITIES["T"].values()])
    assert found == pytest.approx((own, base))
    assert result.arms["U"].areas(result.arms["T"], "cuda") is None


def test_a_study_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="has no study of that name"):
        read_study(small_study(tmp_path))
