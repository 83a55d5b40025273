"""Progress lines and the summary table, character by character."""

import re

import pytest

from rcdist.tracking.jsonl import LogRecord
from rcdist.tracking.progress import Progress, format_count, format_duration, format_progress, format_summary

RECORD = {
    "train/loss_nats": 4.51234,
    "train/learning_rate": 0.00398,
    "train/grad_norm": 0.5,
    "perf/tokens_per_s": 5312.0,
    "perf/step_s": 2.0,
}


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.5, "0.5"), (999, "999"), (999.9, "1k"), (5312, "5.31k"), (374_108_160, "374M"), (2.5e18, "2.5E")],
)
def test_format_count(value: float, text: str) -> None:
    assert format_count(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-1, "0s"), (41.6, "42s"), (59.9, "1m00s"), (130, "2m10s"), (11_100, "3h05m"), (187_200, "2d04h")],
)
def test_format_duration(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


def test_progress_line() -> None:
    assert format_progress(20, 400, RECORD, 130) == (
        "step  20/400  loss 4.5123  learning rate 3.98e-03  grad norm 0.500  tokens/s 5.31k  left 2m10s"
    )


def test_progress_line_with_evaluation_and_skipped_steps_and_without_the_rest() -> None:
    record = {"train/skipped_steps": 2.0, "eval/loss_nats": 3.0, "eval/bits_per_byte": 1.25}
    assert format_progress(400, 400, record, 0.0) == "step 400/400  skipped 2  held out 3.0000 (1.2500 bits/byte)"


def test_time_left_is_that_of_this_start_and_includes_what_lies_between_steps() -> None:
    progress = Progress(200)
    assert progress.format_line(LogRecord(110, 1_000_000, RECORD)).endswith("left 3m00s")  # 90 steps of 2 s
    assert progress.format_line(LogRecord(120, 1_030_000, RECORD)).endswith("left 4m00s")  # 80 steps of 3 s
    assert "left" not in progress.format_line(LogRecord(200, 1_300_000, RECORD))


def test_time_left_leaves_out_the_time_without_workers() -> None:
    progress, after = Progress(200), RECORD | {"cost/startup_device_s": 30.0}
    progress.format_line(LogRecord(110, 1_000_000, RECORD))
    # Ten steps later, and 10 minutes: workers were replaced, and steps still take 2 s.
    assert progress.format_line(LogRecord(120, 1_630_000, after)).endswith("left 2m40s")
    assert progress.format_line(LogRecord(130, 1_660_000, after)).endswith("left 3m30s")  # 70 steps of 3 s


def test_the_table_is_plain_has_what_the_run_has_and_keeps_paths_whole() -> None:
    metrics = {"cost/usd": 0.00173, "eval/bits_per_byte": 1.98764, "yardstick/gzip_bits_per_byte": 2.5}
    path = "/storage/" + "long/" * 60 + "step-00000400"
    lines = format_summary({"run": "tiny (FINISHED)", "plan": "T cG@a"}, metrics, {"checkpoint": path}).splitlines()
    assert [re.split("  +", line.strip()) for line in lines] == [
        ["run", "tiny (FINISHED)"],
        ["plan", "T cG@a"],
        ["bits per byte", "1.9876"],
        ["gzip -9", "2.5000"],
        ["money", "0.001730 USD"],
        ["checkpoint", path],
    ]
    assert all(line.isascii() and line.isprintable() for line in lines)
