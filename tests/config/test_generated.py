"""Generated settings, on the command line or in a file, are a valid run, or exit code 2 in one line."""

import contextlib
import io
import tempfile
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from rcdist.config import JobConfig
from rcdist.config.cli import config_from_dict, dump_config, read_config
from rcdist.config.validation import all_keys, is_section
from rcdist.exits import run_main
from rcdist.sweep.settings import SweepConfig

DEFAULTS: dict[str, Any] = JobConfig().model_dump(mode="json")
LEAVES = [key for key, field in all_keys(JobConfig) if not is_section(field.annotation)]
KEYS = [key for key, _ in all_keys(JobConfig)]
HOSTILE_TEXT = [
    "",
    " ",
    "~",
    "~nosuch/x",
    "x" * 300,
    "a/" * 3000,
    "\0",
    "\ud800",
    "\x1b[31m",
    "é" * 200,
    "0x10",
    "1e400",
    "-0",
    "9" * 5000,
    "nan",
    "inf",
    "-inf",
    "5e8",
    "1_000",
    "٣",
    "None",
    "null",
    "true",
    "[",
    "{",
    "{a: b",
    "[1, 2",
    "&a [*a]",
    "*x",
    "<<",
    "!!python/object:os.system",
    "2026-13-45",
    "hub:",
    "hub:a/b/c/d",
    "s3://bucket",
    "sqlite:///",
    "http://",
    "T",
    "step-1",
    "T cG@a x",
    "cG@a;",
    "r(",
    "../..",
    "*",
    "[a-z]*",
    "--name",
    "-1",
    "${HOME}",
    "{c: 0.5}",
    "{q: 1}",
    "[3, 2]",
]
HOSTILE = [None, True, False, 0, -1, 1, 2**63, 10**30, 1e-320, 1e308, float("nan"), float("inf"), [], {}, [[]], [None]]
TEXTS = st.sampled_from(HOSTILE_TEXT) | st.text(max_size=8)
SCALARS = st.sampled_from([*HOSTILE, date(2026, 1, 1)]) | st.integers() | st.floats() | TEXTS
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS | st.sampled_from("fcgoGUDr"), inner, max_size=3),
    max_leaves=6,
)


def near(key: str) -> st.SearchStrategy[Any]:
    """Draw values like the default of a key: of its kind, often legal."""
    value: Any = DEFAULTS
    for part in key.split("."):
        value = value[part]
    if isinstance(value, bool) or value is None:
        return st.sampled_from([True, False, None, 1, "auto"])
    if isinstance(value, int | float):
        return st.sampled_from([value, value * 2, value + 1, value / 3, -value, 0, 8, 16, 1024, str(value)])
    if isinstance(value, str):
        return st.sampled_from([value, value.upper(), value + "x", "bytes", "file", "bf16", "hadamard", "wsd", "auto"])
    return st.just(value) | st.lists(st.sampled_from(["austen", "x.txt"]), max_size=2)


ONE_CHANGE = st.one_of(
    st.sampled_from(LEAVES).flatmap(lambda key: st.tuples(st.just(key), near(key))),
    st.tuples(st.sampled_from(KEYS), VALUES),
    st.tuples(st.sampled_from(KEYS).map(lambda key: key[:-1]), SCALARS),
    st.tuples(st.just("deepspeed"), st.dictionaries(TEXTS, VALUES, max_size=2)),
)
CHANGES = st.lists(ONE_CHANGE, min_size=1, max_size=4)


def nested(changes: list[tuple[str, Any]]) -> dict[str, Any]:
    """Place dotted keys into a tree; one below a value replaces it."""
    tree: dict[str, Any] = {}
    for key, value in changes:
        *sections, last = key.split(".")
        inner = tree
        for section in sections:
            if not isinstance(inner.get(section), dict):
                inner[section] = {}
            inner = inner[section]
        inner[last] = value
    return tree


def judge(main: Callable[[], BaseModel]) -> bool:
    """Say whether settings were taken; what is taken reads back, what is not is one line."""
    taken: list[BaseModel] = []
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = run_main(lambda _: taken.append(main()), [])
    if code == 0:
        (config,) = taken
        text = dump_config(config)
        text.encode()
        assert dump_config(config_from_dict(yaml.safe_load(text), type(config))) == text  # not ==: nan is not itself
        return True
    assert code == 2, err.getvalue()
    assert err.getvalue().count("\n") == 1 and "Traceback" not in err.getvalue(), err.getvalue()
    assert len(err.getvalue()) < 2100
    return False


def judge_all_ways(changes: list[tuple[str, Any]]) -> None:
    """Give the same changes as a tree, as a YAML file, and on the command line."""
    tree = nested(changes)
    judge(lambda: config_from_dict(tree))
    judge(lambda: config_from_dict({"baseline": tree}, SweepConfig))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "c.yaml"
        path.write_text(yaml.dump(tree, allow_unicode=False), errors="surrogateescape")
        judge(lambda: read_config(["--config", str(path)], "test"))
    arguments = [f"--{key}={value}" for key, value in changes]
    judge(lambda: read_config(arguments, "test"))


QUIET = [HealthCheck.too_slow, HealthCheck.filter_too_much]


@settings(max_examples=60, suppress_health_check=QUIET)
@given(changes=CHANGES)
def test_generated_settings_are_taken_or_refused_in_one_line(changes: list[tuple[str, Any]]) -> None:
    judge_all_ways(changes)


@pytest.mark.exhaustive
@settings(max_examples=2_500, suppress_health_check=QUIET)  # four ways each
@given(changes=CHANGES)
def test_ten_thousand_generated_settings(changes: list[tuple[str, Any]]) -> None:
    judge_all_ways(changes)


@settings(max_examples=100)
@given(text=st.text(alphabet="ab:{}[]&*<!|>-'\"?, \n\t#%@`~0123e\0\x85\ufeff", max_size=30))
def test_a_file_of_anything_is_taken_or_refused_in_one_line(text: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "c.yaml"
        path.write_text(text)
        judge(lambda: read_config(["--config", str(path)], "test"))
