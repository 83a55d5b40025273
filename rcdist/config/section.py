"""What all sections of settings have in common: no unknown key, and values by matrix letter."""

from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from rcdist.config.plan import LETTERS, RESERVOIR_LETTER


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
