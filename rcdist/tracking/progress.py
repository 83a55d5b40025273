"""What a person sees: a line per record and the table at the end, as pure functions that return text."""

import io
from collections.abc import Mapping
from typing import TYPE_CHECKING

from rcdist.tracking.jsonl import LogRecord
from rcdist.tracking.metrics import METRIC_BY_NAME

if TYPE_CHECKING:
    from rich.table import Table


def format_count(value: float) -> str:
    """Write a count with three digits and k, M, G, T, P or E: 5.3k, 374M."""
    for suffix in ("", "k", "M", "G", "T", "P"):
        if abs(value) < 999.5:
            return f"{value:.3g}{suffix}"
        value /= 1000
    return f"{value:.3g}E"


def format_duration(seconds: float) -> str:
    """Write seconds as 42s, 2m10s, 3h05m or 2d04h."""
    whole = max(round(seconds), 0)
    minutes, hours, days = whole // 60, whole // 3600, whole // 86400
    if days:
        return f"{days}d{hours % 24:02d}h"
    if hours:
        return f"{hours}h{minutes % 60:02d}m"
    return f"{minutes}m{whole % 60:02d}s" if minutes else f"{whole}s"


def format_progress(step: int, num_steps: int, record: Mapping[str, float], left_s: float | None) -> str:
    """Write one line for a record, without control characters: it must read well in a job's log.

    Args:
        step: steps done.
        num_steps: steps of the run.
        record: metrics; missing ones are left out.
        left_s: seconds to the end; None: not known yet.
    """
    parts = [f"step {step:>{len(str(num_steps))}}/{num_steps}"]
    shown = (
        ("loss", "train/loss_nats", "{:.4f}"),
        ("learning rate", "train/learning_rate", "{:.2e}"),
        ("grad norm", "train/grad_norm", "{:.3f}"),
    )
    parts += [f"{label} {form.format(record[name])}" for label, name, form in shown if name in record]
    if "perf/tokens_per_s" in record:
        parts.append(f"tokens/s {format_count(record['perf/tokens_per_s'])}")
    if record.get("train/skipped_steps"):
        parts.append(f"skipped {record['train/skipped_steps']:.0f}")
    if "eval/loss_nats" in record:
        parts.append(f"held out {record['eval/loss_nats']:.4f} ({record['eval/bits_per_byte']:.4f} bits/byte)")
    if left_s is not None and step < num_steps:
        parts.append(f"left {format_duration(left_s)}")
    return "  ".join(parts)


class Progress:
    """Estimate the time left from the records since the workers were last started, evaluation and saving included.

    Args:
        num_steps: steps of the run.
    """

    def __init__(self, num_steps: int) -> None:
        self._num_steps = num_steps
        self._first: LogRecord | None = None
        self._startup_s = 0.0

    def format_line(self, record: LogRecord) -> str:
        """Return the line of the next record."""
        startup_s = record.metrics.get("cost/startup_device_s", 0.0)
        if self._first is None or startup_s > self._startup_s or record.step <= self._first.step:  # workers replaced
            self._first = record
        self._startup_s = startup_s
        done = record.step - self._first.step
        step_s = record.metrics.get("perf/step_s")
        if done:
            step_s = (record.timestamp_ms - self._first.timestamp_ms) / 1000 / done
        left_s = None if step_s is None else step_s * (self._num_steps - record.step)
        return format_progress(record.step, self._num_steps, record.metrics, left_s)


_METRIC_ROWS = (
    ("tokens", "train/tokens", "{:,.0f}"),
    ("training loss", "train/loss_mean_nats", "{:.4f} nats/token"),
    ("held-out loss", "eval/loss_nats", "{:.4f} nats/token"),
    ("perplexity", "eval/perplexity", "{:.2f}"),
    ("bits per byte", "eval/bits_per_byte", "{:.4f}"),
    ("  gzip -9", "yardstick/gzip_bits_per_byte", "{:.4f}"),
    ("  unigrams, add one", "yardstick/unigram_bits_per_byte", "{:.4f}"),
    ("  bigrams, add one", "yardstick/bigram_bits_per_byte", "{:.4f}"),
    ("tokens/s", "perf/tokens_per_s", "{:,.0f}"),
    ("device seconds", "cost/device_s", "{:,.1f}"),
    ("money", "cost/usd", "{:.6f} USD"),
    ("energy", "cost/kwh", "{:.6f} kWh"),
    ("goodput", "cost/goodput", "{:.1%}"),
)
assert all(name in METRIC_BY_NAME for _, name, _ in _METRIC_ROWS)


def format_summary(head: dict[str, str], metrics: Mapping[str, float], foot: dict[str, str]) -> str:
    """Draw the table at the end of a run as plain text; long paths stay on one line, to be copied.

    Args:
        head: text by label of the first rows.
        metrics: newest values; rows of those that the run does not have are left out.
        foot: text by label of the last rows.
    """
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, show_header=False, pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    measured = {label: form.format(metrics[name]) for label, name, form in _METRIC_ROWS if name in metrics}
    for row in (head | measured | foot).items():
        table.add_row(*row)
    return draw(table)


def draw(table: "Table") -> str:
    """Return a table as plain text without trailing blanks."""
    from rich.console import Console

    console = Console(file=io.StringIO(), width=10_000, color_system=None, markup=False, emoji=False)
    with console.capture() as capture:
        console.print(table)
    return "\n".join(line.rstrip() for line in capture.get().splitlines()).strip("\n")
