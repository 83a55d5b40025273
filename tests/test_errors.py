"""Errors: one line in the house form, alive after pickling, with documented exit codes."""

import pickle

import pytest

from rcdist import errors
from rcdist.errors import ConfigError, RcdistError

CLASSES = [c for c in vars(errors).values() if isinstance(c, type) and issubclass(c, RcdistError)]


@pytest.mark.parametrize("error_class", CLASSES)
def test_every_class_survives_pickling(error_class: type[RcdistError]) -> None:
    error = error_class("train.steps", 0, "must be at least 1", "Use 1 or more")
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is error_class
    assert str(copy) == str(error) == "train.steps=0: must be at least 1. Use 1 or more."
    assert (copy.field, copy.value, copy.exit_code) == ("train.steps", 0, error_class.exit_code)


def test_the_text_is_one_line_with_quoted_strings() -> None:
    error = ConfigError("name", "a b", "no\nspaces.", "Use a-b.")
    assert str(error) == 'name="a b": no spaces. Use a-b.'
    assert str(ConfigError("", None, "it is wrong", "Mend it")) == "it is wrong. Mend it."


def test_exit_codes_are_the_documented_ones() -> None:
    codes = {name: value for name, value in vars(errors).items() if name.startswith("EXIT_")}
    assert codes == {
        "EXIT_DONE": 0,
        "EXIT_UNEXPECTED": 1,
        "EXIT_BAD_CONFIG": 2,
        "EXIT_DOES_NOT_FIT": 3,
        "EXIT_BUDGET": 4,
        "EXIT_DIVERGED": 5,
        "EXIT_RETRIES": 6,
        "EXIT_STOPPED": 143,
    }
