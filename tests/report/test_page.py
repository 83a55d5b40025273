"""The page in a real Chromium: figures are drawn, light and dark, from the disk alone."""

import re
from pathlib import Path

import pytest

from rcdist.report.figures import draw_curves, draw_front, draw_hypervolume, draw_importance
from rcdist.report.page import Section, build_page
from rcdist.report.runs import CurvePoint, ReportRun
from tests.report.chromium import browse, needs_chromium

OBJECTIVES = ["eval/bits_per_byte", "cost/usd"]


def run(name: str, quality: float, cost: float, *, base: bool = False, status: str = "finished") -> ReportRun:
    curve = [CurvePoint(100.0 * i, cost * i, 0.1 * cost * i, quality + 1 / i) for i in range(1, 6)]
    values = {OBJECTIVES[0]: quality, OBJECTIVES[1]: cost}
    return ReportRun(name, "T" if base else "c<b>", f"plan {name} <b>", status, base, values, curve)


RUNS = [run("0", 2.0, 1.0, base=True), run("1", 1.9, 0.8), run("2", 2.2, 0.9), run("3", 1.8, 1.2, status="failed")]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    sections = [
        Section("Front", "a note & more", draw_front(RUNS, OBJECTIVES)),
        Section("Quality alone", "", draw_front(RUNS, OBJECTIVES[:1])),
        Section("Curves", "", draw_curves(RUNS, "usd", OBJECTIVES[0])),
        Section("Hypervolume", "", draw_hypervolume([0.1, 0.2])),
        Section("Importance", "", draw_importance({OBJECTIVES[0]: {"a": 0.7, "b": 0.3}})),
        Section("Table", columns=["name", "value"], rows=[["<script>alert(1)</script>", "-1.5"]]),
    ]
    path = tmp_path_factory.mktemp("page") / "page.html"
    path.write_text(build_page("Title <x>", "what & why", sections))
    return path


def test_text_is_escaped_and_nothing_is_loaded(page: Path) -> None:
    text = page.read_text()
    body = text.partition("</head>")[2]
    assert "&lt;script&gt;alert(1)" in body
    assert "<title>Title &lt;x&gt;</title>" in text
    assert not re.search(r"<(?:script|link|img)[^>]+(?:src|href)=", text)


@needs_chromium
@pytest.mark.slow
def test_figures_are_drawn_in_light_and_dark(page: Path, tmp_path: Path) -> None:
    for dark, colour in ((False, "#1b1b1b"), (True, "#e8e8e8")):
        dom = browse(page, tmp_path / f"profile-{dark}", dark=dark, picture=tmp_path / f"{dark}.png")
        assert dom.count('class="main-svg"') >= 5  # one or more per figure
        assert f'data-dressed="{colour}"' in dom
        assert "baseline, plan T" in dom
        assert "paper: -9.9 % training" in dom
        red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
        assert f"fill: rgb({red}, {green}, {blue})" in dom  # the axes' text has the page's colour
        assert (tmp_path / f"{dark}.png").stat().st_size > 20_000


def test_front_marks_the_front_the_baseline_and_the_rest() -> None:
    names = {trace.name: list(trace.text or []) for trace in draw_front(RUNS, OBJECTIVES).data}
    assert names["front"] == ["1"]
    assert names["baseline, plan T"] == ["0"]
    assert names["other runs"] == ["2"]  # what failed is not drawn


def test_curves_are_over_what_was_asked_for_the_baseline_first() -> None:
    figure = draw_curves(RUNS, "device_s", OBJECTIVES[0])
    assert figure.data[0].name.startswith("0 ")
    assert list(figure.data[0].x) == [1.0, 2.0, 3.0, 4.0, 5.0]
    assert list(draw_curves(RUNS, "tokens", OBJECTIVES[0]).data[0].x) == [100.0, 200.0, 300.0, 400.0, 500.0]
