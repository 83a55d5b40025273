"""Pictures of a study are drawn of what there is, and of nothing else."""

from dataclasses import replace
from pathlib import Path

from matplotlib.image import imread

from rcdist.study.pictures import draw_pictures
from rcdist.study.results import StudyResult


def test_pictures_are_drawn_of_what_there_is(result: StudyResult, tmp_path: Path) -> None:
    files = draw_pictures(result, tmp_path)
    assert [file.name for file in files] == ["s-costs.png", "s-tokens.png"]
    for file in files:
        pixels = imread(file)
        assert pixels.shape[1] == 1280
        assert pixels.min() < 0.5 < pixels.max()
    alone = replace(result, arms={"T": result.arms["T"]})
    assert draw_pictures(alone, tmp_path) == []
