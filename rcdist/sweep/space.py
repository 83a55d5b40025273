"""The space of a search: which values of which keys, under which conditions, read from YAML and checked before use."""

import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError, create_model
from pydantic.fields import FieldInfo

from rcdist.config import JobConfig
from rcdist.config.plan import parse_plan
from rcdist.config.validation import all_keys, is_section, nearest_key
from rcdist.errors import ConfigError, RcdistError
from rcdist.sweep.plans import PLAN, PLAN_PARTS, check_part, compose_plan

Values = dict[str, Any]
"""What was picked, by the name of the parameter; a parameter whose condition does not hold is not in it."""

_NOT_SEARCHED = ("name", "storage_path", "tracking.", "checkpoint.resume", "data.cache_dir", "cluster.address")
"""Keys, or heads of keys, that say where a run is and not what it is."""


@dataclass(frozen=True)
class Parameter:
    """Hold what one key may be: one of its choices, or a number between two bounds.

    Attributes:
        name: dotted key of a run, or a part of the plan, as reservoir.plan.letters.
        choices: any YAML values; empty for a range.
        low, high: bounds, both included.
        is_int: whole numbers only.
        log: uniform in the logarithm.
        step: distance of two values; None: any number.
        when: which values other parameters must have, for this one to be picked at all.
    """

    name: str
    choices: tuple[Any, ...] = ()
    low: float = 0.0
    high: float = 0.0
    is_int: bool = False
    log: bool = False
    step: float | None = None
    when: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)

    def applies(self, values: Values) -> bool:
        """Say whether the condition holds."""
        return all(name in values and values[name] in allowed for name, allowed in self.when.items())

    @property
    def labels(self) -> dict[str | int | float | bool | None, Any]:
        """Return the choices by what a sampler calls them: themselves, lists and maps by their JSON."""
        return {json.dumps(c, sort_keys=True) if isinstance(c, dict | list) else c: c for c in self.choices}

    def grid(self) -> list[Any]:
        """Return every value.

        Raises:
            ConfigError: a range without step has no end of them.
        """
        if self.choices:
            return list(self.choices)
        if self.step is None:
            raise ConfigError(
                f"space.{self.name}", f"{self.low}..{self.high}", "a grid needs a step", "Give step, or a list"
            )
        count = math.floor((self.high - self.low) / self.step + 1e-9) + 1
        found = [self.low + i * self.step for i in range(count)]
        return [round(value) for value in found] if self.is_int else found


@dataclass(frozen=True)
class Space:
    """Hold the parameters, each after those its condition names."""

    parameters: tuple[Parameter, ...]

    def pick(self, choose: Callable[[Parameter], Any]) -> Values:
        """Return what `choose` picks of each parameter whose condition holds."""
        values: Values = {}
        for parameter in self.parameters:
            if parameter.applies(values):
                values[parameter.name] = choose(parameter)
        return values

    def grid(self) -> Iterator[Values]:
        """Yield every combination once, the last parameter varying fastest."""
        yield from self._grid({}, 0)

    def _grid(self, values: Values, place: int) -> Iterator[Values]:
        if place == len(self.parameters):
            yield dict(values)
        elif not (parameter := self.parameters[place]).applies(values):
            yield from self._grid(values, place + 1)
        else:
            for value in parameter.grid():
                yield from self._grid({**values, parameter.name: value}, place + 1)

    def settings(self, values: Values) -> dict[str, Any]:
        """Return the settings of a run by dotted key; the parts of a plan become the plan."""
        parts = {name: value for name, value in values.items() if name.startswith(f"{PLAN}.")}
        rest = {name: value for name, value in values.items() if name not in parts}
        return rest | ({PLAN: compose_plan(parts)} if parts else {})


def read_space(tree: Mapping[str, Any]) -> Space:
    """Read the `space` section.

    A list is a choice. `{low: 0.5, high: 2, log: true}` is a range, with `step` a stepped one. `{values: [...], when:
    {reservoir.topology: block}}` is a choice that is made only where the condition holds; a range takes `when` too.

    Raises:
        ConfigError: an unknown key, no values, a reversed range, a value that no run takes, a condition on nothing.
    """
    if not tree:
        raise ConfigError("space", None, "nothing is searched", "Declare e.g. space: {reservoir.plan: [T, cG@a]}")
    declared = dict(_flatten(tree))
    parameters = [_read_parameter(name, spec) for name, spec in declared.items()]
    for parameter in parameters:
        for name, allowed in parameter.when.items():
            if name not in declared:
                rule = "is no parameter of the space, and a condition names it"
                raise ConfigError(f"space.{parameter.name}.when", name, rule, f"Parameters: {', '.join(declared)}")
            other = next(p for p in parameters if p.name == name)
            for value in allowed:
                if other.choices and value not in other.choices:
                    rule = f"{name} is never that; it is one of {', '.join(map(str, other.choices))}"
                    raise ConfigError(f"space.{parameter.name}.when", value, rule, "Use one of these")
    return Space(tuple(_in_order(parameters)))


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield parameters by dotted key; sections may be nested, as in the settings of a run."""
    sections = {name for name, info in all_keys(JobConfig) if is_section(info.annotation)}
    for key, spec in tree.items():
        name = f"{prefix}{key}"
        if isinstance(spec, dict) and (
            name in sections or (name == PLAN and not {"values", "low", "high"} & set(spec))
        ):
            yield from _flatten(spec, f"{name}.")
        else:
            yield name, spec


def _read_parameter(name: str, spec: Any) -> Parameter:
    where = f"space.{name}"
    info = _check_key(name)
    if isinstance(spec, list):
        spec = {"values": spec}
    if not isinstance(spec, dict):
        raise ConfigError(
            where, spec, "is one value", "Write a list of values, {low: ..., high: ...}, or put it outside space"
        )
    unknown = sorted(set(spec) - {"values", "low", "high", "log", "step", "when"})
    if unknown:
        raise ConfigError(
            where, unknown[0], "is no word of a parameter", "Use values, or low, high, log, step; and when"
        )
    when = {key: tuple(v if isinstance(v, list) else [v]) for key, v in (spec.get("when") or {}).items()}
    if "values" in spec:
        values = spec["values"]
        if not isinstance(values, list) or not values:
            raise ConfigError(where, values, "there is nothing to choose from", "List at least one value")
        if len({json.dumps(value, sort_keys=True) for value in values}) < len(values):
            raise ConfigError(where, values, "a value stands twice", "List each once")
        for value in values:
            _check_value(name, info, value)
        return Parameter(name, choices=tuple(values), when=when)
    return _read_range(name, info, spec, when)


def _read_range(name: str, info: FieldInfo | None, spec: dict[str, Any], when: dict[str, tuple[Any, ...]]) -> Parameter:
    where = f"space.{name}"
    low, high, step, log = spec.get("low"), spec.get("high"), spec.get("step"), bool(spec.get("log", False))
    numbers = [value for value in (low, high, step) if value is not None]
    if low is None or high is None or any(isinstance(v, bool) or not isinstance(v, int | float) for v in numbers):
        raise ConfigError(where, spec, "is no range of numbers", "Write {low: 0.5, high: 2.0}")
    if low >= high:
        raise ConfigError(where, f"{low}..{high}", "the range is reversed or empty", "Give low < high")
    if log and (low <= 0 or step is not None):
        raise ConfigError(
            where,
            f"{low}..{high}",
            "a logarithmic range begins above 0 and has no step",
            "Correct it, or leave log out",
        )
    if step is not None and step <= 0:
        raise ConfigError(where, step, "a step is above 0", "Give a positive step")
    for bound in (low, high):
        _check_value(name, info, bound)
    is_int = all(isinstance(value, int) for value in numbers)
    return Parameter(name, low=low, high=high, is_int=is_int, log=log, step=step, when=when)


def _check_key(name: str) -> FieldInfo | None:
    """Return the field of a key, None for a part of the plan."""
    if name.startswith(f"{PLAN}."):
        if name.removeprefix(f"{PLAN}.") not in PLAN_PARTS:
            rule = "is no part of a plan"
            raise ConfigError(f"space.{name}", None, rule, f"Parts: {', '.join(PLAN_PARTS)}")
        return None
    known = {key: info for key, info in all_keys(JobConfig) if not is_section(info.annotation)}
    if name not in known:
        raise nearest_key(JobConfig, name, None, "in space")
    if name.startswith(_NOT_SEARCHED):
        raise ConfigError(f"space.{name}", None, "says where a run is, not what it is", "Put it outside space")
    return known[name]


def _check_value(name: str, info: FieldInfo | None, value: Any) -> None:
    """Refuse a value that no run takes, whatever the other keys are."""
    where = f"space.{name}"
    try:
        if info is None:
            check_part(name.removeprefix(f"{PLAN}."), value)
        elif name == PLAN:
            parse_plan(str(value))
        else:
            checked: Any = create_model("Checked", value=(Any if info.annotation is None else info.annotation, info))
            checked(value=value)
    except ValidationError as error:
        rule = error.errors()[0]["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
        raise ConfigError(where, value, rule, f"It means: {(info.description if info else '') or name}") from None
    except RcdistError as error:
        raise ConfigError(where, value, error.rule, error.remedy) from None


def _in_order(parameters: list[Parameter]) -> list[Parameter]:
    """Put each parameter after those that its condition names, else as declared."""
    placed: list[Parameter] = []
    while len(placed) < len(parameters):
        names = {parameter.name for parameter in placed}
        ready = [p for p in parameters if p not in placed and set(p.when) <= names]
        if not ready:
            circle = ", ".join(p.name for p in parameters if p not in placed)
            raise ConfigError("space", circle, "their conditions go in a circle", "Leave one of them out")
        placed.append(ready[0])
    return placed


def first_combinations(space: Space, count: int) -> Iterator[Values]:
    """Yield up to `count` combinations spread over the space: corners of ranges, all choices."""

    def corners(parameter: Parameter) -> list[Any]:
        return list(parameter.choices) or [parameter.low, parameter.high]

    rows = [corners(parameter) for parameter in space.parameters]
    total = math.prod(len(row) for row in rows)
    for i in range(min(count, total)):
        number = i * total // min(count, total)
        picks: dict[str, Any] = {}
        for parameter, row in zip(space.parameters, rows, strict=True):
            number, place = divmod(number, len(row))
            picks[parameter.name] = row[place]
        yield space.pick(_from(picks))


def _from(picks: Values) -> Callable[[Parameter], Any]:
    return lambda parameter: picks[parameter.name]
