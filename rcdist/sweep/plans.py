"""A plan put together from parts that can be searched one by one: letters, pattern, sharing, inserted layers."""

from collections.abc import Mapping
from typing import Any

from rcdist.config.plan import parse_plan
from rcdist.errors import ConfigError

PLAN = "reservoir.plan"
PLAN_PARTS = {
    "letters": "which matrices a reservoir block freezes, as cG",
    "pattern": "which blocks are reservoir blocks: x, the others T, tiled over the layers, as `T x`",
    "share": "sharing names: null, each block has its own; a, all blocks share; a b, in turn",
    "insert": "a reservoir layer in each reservoir block: false, true, or the name under which it is shared",
}


def compose_plan(parts: Mapping[str, Any]) -> str:
    """Return the plan string, in normal form.

    Args:
        parts: by `reservoir.plan.letters` and so on; a part that is missing is `c`, `x`, None and False.

    Raises:
        ConfigError: the result is no plan.
    """
    letters = parts.get(f"{PLAN}.letters", "c")
    pattern = str(parts.get(f"{PLAN}.pattern", "x")).split()
    names = str(parts.get(f"{PLAN}.share") or "").split()
    insert = parts.get(f"{PLAN}.insert", False)
    tokens, place = [], 0
    # In turn: the names are given to the reservoir blocks of as many patterns as it takes to come round.
    for token in pattern * max(len(names), 1):
        if token == "x":
            share = f"@{names[place % len(names)]}" if names and letters != "T" else ""
            inserted = "" if not insert else "+r" if insert is True else f"+r@{insert}"
            token = f"{letters}{share}{inserted}"
            place += 1
        tokens.append(token)
    return str(parse_plan(" ".join(_shortest_period(tokens))))


def _shortest_period(tokens: list[str]) -> list[str]:
    for length in range(1, len(tokens) + 1):
        if len(tokens) % length == 0 and tokens == tokens[:length] * (len(tokens) // length):
            return tokens[:length]
    return tokens


def check_part(name: str, value: Any) -> None:
    """Refuse a part that fits into no plan.

    Raises:
        ConfigError: what is wrong with it.
    """
    if name == "pattern":
        tokens = str(value).split()
        if not tokens or any(token not in ("T", "x") for token in tokens) or "x" not in tokens:
            raise ConfigError(PLAN, value, "is no pattern of T and x with at least one x", "Write e.g. `T x`")
    if name == "insert" and not isinstance(value, bool | str):
        raise ConfigError(PLAN, value, "is neither true, false nor a sharing name", "Write e.g. [false, true]")
    compose_plan({f"{PLAN}.{name}": value})
