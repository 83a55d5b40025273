"""The picture is a PNG of its size, with and without a cost, whatever is missing."""

import struct
from pathlib import Path

import pytest

from rcdist.report.picture import draw_picture
from tests.report.test_page import OBJECTIVES, RUNS


@pytest.mark.parametrize(
    ("runs", "objectives"),
    [(RUNS, OBJECTIVES), (RUNS, OBJECTIVES[:1]), (RUNS[1:], OBJECTIVES), (RUNS * 8, OBJECTIVES)],
    ids=["front", "one objective", "no baseline", "many"],
)
def test_picture(tmp_path: Path, runs: list, objectives: list[str]) -> None:  # type: ignore[type-arg]
    path = tmp_path / "front.png"
    draw_picture(path, runs, objectives, "a title")
    head = path.read_bytes()[:24]
    assert head[:8] == b"\x89PNG\r\n\x1a\n"
    assert struct.unpack(">II", head[16:24]) == (1600, 900)
