"""What is wrong with settings, in the words of errors.py: pydantic's complaint becomes one ConfigError."""

import contextlib
import difflib
import reprlib
from collections.abc import Iterator
from typing import Any, TypeGuard

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails, PydanticUndefined

from rcdist.errors import ConfigError, RcdistError

_SHORTER = (
    ("Input should be", "must be"),
    ("greater than or equal to", ">="),
    ("less than or equal to", "<="),
    ("greater than", ">"),
    ("less than", "<"),
)


def is_section(annotation: Any) -> TypeGuard[type[BaseModel]]:
    """Tell whether a field's type is a section of keys."""
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def all_keys(settings: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Yield every legal dotted key, with its field; the sections come too."""
    for name, field in settings.model_fields.items():
        yield prefix + name, field
        if is_section(field.annotation):
            yield from all_keys(field.annotation, f"{prefix}{name}.")


def nearest_key(settings: type[BaseModel], name: str, value: object, source: str) -> ConfigError:
    """Build the error for an unknown key; it names the nearest legal one, by the whole path or by its last part.

    Args:
        settings: the model that lacks the key.
        name: the dotted key.
        value: what it was to be.
        source: where it stands, "in FILE" or "on the command line".
    """

    def likeness(key: str) -> tuple[float, float]:
        whole = difflib.SequenceMatcher(None, name, key).ratio()
        tail = difflib.SequenceMatcher(None, name.split(".")[-1], key.split(".")[-1]).ratio()
        return max(whole, tail), whole

    nearest = max((key for key, field in all_keys(settings) if not is_section(field.annotation)), key=likeness)
    remedy = f"The nearest one is {nearest}" if likeness(nearest)[0] >= 0.6 else "See --help for all keys"
    return ConfigError(name, _shorten(value), f"there is no such key, {source}", remedy)


def to_config_error(
    error: ValidationError, settings: type[BaseModel], data: dict[str, Any], source: str
) -> RcdistError:
    """Build the one-line error for the first thing that pydantic found wrong.

    Args:
        error: what validation raised.
        settings: the model that was validated.
        data: what was validated, to name the place in it.
        source: where `data` stands, for an unknown key.
    """
    problems = error.errors()
    first = _key_of(settings, problems[0])
    # A union complains once per branch: the branch that got furthest into the value is the one that was meant.
    problem = max((p for p in problems if _key_of(settings, p) == first), key=lambda p: len(p["loc"]))
    cause = problem.get("ctx", {}).get("error")
    if isinstance(cause, RcdistError):
        return cause
    path = _path(problem["loc"], data)
    if problem["type"] == "extra_forbidden":
        return nearest_key(settings, path, problem["input"], source)
    field = dict(all_keys(settings))[first]
    if problem["type"] == "missing":
        return ConfigError(path, None, "has no default and is not given", f"Give --{path}: {field.description}")
    if problem["type"].startswith("model_") or problem["type"] == "dict_type":
        return ConfigError(path, _shorten(problem["input"]), "is a section of keys", f"Write {path}: {{key: value}}")
    rule = problem["msg"].removeprefix("Value error, ")
    for long, short in _SHORTER:
        rule = rule.replace(long, short)
    default = field.get_default(call_default_factory=True)
    remedy = f"It means: {field.description.rstrip('.')}" if field.description else "Correct it"
    if default is not PydanticUndefined:
        remedy += f" (default {default})"
    return ConfigError(path, _shorten(problem["input"]), rule, remedy)


def _key_of(settings: type[BaseModel], problem: ErrorDetails) -> str:
    """Return the longest legal key at the head of a complaint's place."""
    legal = {key for key, _ in all_keys(settings)}
    parts = [str(part) for part in problem["loc"]]
    return next((key for n in range(len(parts), 0, -1) if (key := ".".join(parts[:n])) in legal), "")


def _path(loc: tuple[int | str, ...], data: Any) -> str:
    """Return the dotted path of a place in the data, without the union branches that pydantic puts between."""
    parts: list[str] = []
    for part in loc:
        inside = part in range(len(data)) if isinstance(data, list) else isinstance(data, dict) and part in data
        if inside:
            parts.append(str(part))
            data = data[part]
    return ".".join(parts or [str(part) for part in loc])


def _shorten(value: object) -> object:
    """Return the value to show: a number instead of its text, the head of a long text."""
    if isinstance(value, str):
        for number in (int, float):
            with contextlib.suppress(ValueError):
                return number(value)
    # Not str: what aliases within aliases of YAML stand for may have no end.
    text = value if isinstance(value, str) else reprlib.repr(value)
    if len(text) <= 80 and "..." not in text:
        return value
    return text[:77].removesuffix("...") + "..."
