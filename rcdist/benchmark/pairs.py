"""Measure arms alternately and compare them pair by pair."""

import random
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

Arm = Callable[[], Any]


def measure_pairs(arms: Mapping[str, Arm], pairs: int, warm_up: int = 2) -> dict[str, list[float]]:
    """Run every arm once per pair, in an order that is reversed from pair to pair; return seconds by arm.

    Args:
        arms: what to run, by name.
        pairs: measured rounds.
        warm_up: rounds before them that are not counted.
    """
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    for round_number in range(warm_up + pairs):
        order = list(arms)[:: 1 if round_number % 2 == 0 else -1]
        for name in order:
            _synchronise()
            began = time.perf_counter()
            arms[name]()
            _synchronise()
            if round_number >= warm_up:
                seconds[name].append(time.perf_counter() - began)
    return seconds


def ratio(over: list[float], under: list[float]) -> dict[str, float]:
    """Return the median of the pairs' ratios, a 95 % bootstrap interval of it (low, high), and their quartiles."""
    ratios = [a / b for a, b in zip(over, under, strict=True)]
    chosen = random.Random(0)
    medians = sorted(statistics.median(chosen.choices(ratios, k=len(ratios))) for _ in range(2000))
    quarter = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else [ratios[0]] * 3
    return {
        "median": statistics.median(ratios),
        "low": medians[49],
        "high": medians[1949],
        "quartile_1": quarter[0],
        "quartile_3": quarter[2],
    }


def _synchronise() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def describe_device(device: torch.device) -> dict[str, Any]:
    """Name the processor, the threads and the torch version."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:
        lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
        name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "CPU")
    return {"device": name, "threads": torch.get_num_threads(), "torch": torch.__version__}


def format_table(found: dict[str, Any]) -> str:
    """Draw one line per figure: its dotted name, and its value or the median and interval of its ratio."""
    rows = [
        f"{name:34} {value:.4g}" if isinstance(value, float) else f"{name:34} {value}"
        for name, value in _flatten(found)
    ]
    return "\n".join(rows)


def _flatten(found: dict[str, Any], name: str = "") -> Iterator[tuple[str, Any]]:
    if "median" in found:
        yield name, "{median:.3f}  [{low:.3f}, {high:.3f}]".format(**found)
        return
    for key, value in found.items():
        path = f"{name}.{key}" if name else key
        if isinstance(value, dict):
            yield from _flatten(value, path)
        else:
            yield path, value
