"""What all sections of settings have in common: no unknown key, paths, and values by matrix letter."""

import json
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from rcdist.config.plan import LETTERS, RESERVOIR_LETTER

_MAX_NAME_BYTES = 255
_MAX_PATH_BYTES = 4000
"""What Linux allows, less the names that are added below a folder."""


class Section(BaseModel):
    """Refuse unknown keys, inf and nan in every section."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True, validate_default=True, allow_inf_nan=False)


def check_letters(value: Any) -> Any:
    """Refuse a map by letter that names an unknown one."""
    legal = LETTERS + RESERVOIR_LETTER
    for letter in value if isinstance(value, dict) else ():
        if letter not in legal:
            raise ValueError(f"unknown matrix letter {letter!r}. Letters: {' '.join(legal)}")
    return value


def check_path(value: Any) -> Any:
    """Refuse a text that no file system of ours can have as a path, before something trips over it."""
    if not isinstance(value, str):
        return value
    try:
        value.encode()
    except UnicodeEncodeError:  # half of a pair that YAML writes as an escape
        raise ValueError("a path is UTF-8, and this has a character that has none") from None
    if "\0" in value:
        raise ValueError("a path has no NUL character")
    try:
        path = Path(value).expanduser()
    except RuntimeError:
        raise ValueError(f"there is no home folder of {value.split('/')[0]}") from None
    longest = max((len(part.encode()) for part in path.parts), default=0)
    if longest > _MAX_NAME_BYTES:
        raise ValueError(f"a name in a path has at most {_MAX_NAME_BYTES} bytes, this has one of {longest}")
    if len(str(path).encode()) > _MAX_PATH_BYTES:
        raise ValueError(f"a path has at most {_MAX_PATH_BYTES} bytes, this has {len(str(path).encode())}")
    return value


def check_text(value: Any) -> Any:
    """Refuse, anywhere inside a value, a text that cannot be written to a file."""
    try:
        json.dumps(value, ensure_ascii=False, default=str, skipkeys=True).encode()
    except UnicodeEncodeError:  # half of a pair that YAML writes as an escape
        raise ValueError("settings are UTF-8, and this has a character that has none") from None
    return value


RawTree = Annotated[dict[str, Any], AfterValidator(check_text)]
"""Keys that others judge: DeepSpeed, or the settings that an arm changes."""
LocalPath = Annotated[str, AfterValidator(check_path)]
"""A file or folder of this machine; `~` is the home folder."""
Positive = Annotated[float, Field(gt=0)]
PerLetter = Annotated[Positive | dict[str, Positive], AfterValidator(check_letters)]


def per_letter(value: Any, letter: str, default: Any) -> Any:
    """Look a matrix letter up in a setting that is one value or a map by letter.

    Args:
        value: the setting, one value or `{letter: value}`.
        letter: one of f c g o G U D, or r for an inserted reservoir.
        default: what a map that does not name the letter means.
    """
    return value.get(letter, default) if isinstance(value, dict) else value
