"""Plans from parts: what is composed is the plan one would have written."""

import pytest

from rcdist.config.plan import parse_plan
from rcdist.errors import ConfigError
from rcdist.sweep.plans import PLAN, check_part, compose_plan


@pytest.mark.parametrize(
    ("parts", "plan"),
    [
        ({}, "c"),
        ({"letters": "cG"}, "cG"),
        ({"letters": "Gc", "pattern": "T x", "share": "a"}, "T cG@a"),
        ({"letters": "c", "pattern": "T x x T", "share": "a"}, "T c@a*2 T"),
        ({"letters": "c", "pattern": "x", "share": "a b"}, "c@a c@b"),
        ({"letters": "c", "pattern": "T x", "share": "a b"}, "T c@a T c@b"),
        ({"letters": "c", "pattern": "x x", "share": "a b"}, "c@a c@b"),
        ({"letters": "c", "insert": True}, "c+r"),
        ({"letters": "c", "share": "a", "insert": "b"}, "c@a+r@b"),
        ({"letters": "T", "share": "a", "insert": "b", "pattern": "T x"}, "T T+r@b"),
    ],
)
def test_compose(parts: dict[str, object], plan: str) -> None:
    assert compose_plan({f"{PLAN}.{name}": value for name, value in parts.items()}) == str(parse_plan(plan))


@pytest.mark.parametrize(
    ("part", "value", "rule"),
    [
        ("letters", "cX", "unknown matrix letter 'X'"),
        ("letters", "", "letters|empty|plan"),
        ("pattern", "T", "no pattern of T and x"),
        ("pattern", "x y", "no pattern of T and x"),
        ("share", "a-b", "unexpected character"),
        ("insert", 3, "neither true, false nor a sharing name"),
    ],
)
def test_a_part_that_fits_nowhere_is_refused(part: str, value: object, rule: str) -> None:
    with pytest.raises(ConfigError, match=rule):
        check_part(part, value)
