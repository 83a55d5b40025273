"""What pydantic finds wrong, as one line that names the key, the rule and what the key means."""

import pytest

from rcdist.config import JobConfig, Section
from rcdist.config.cli import config_from_dict, parse_cli, read_config
from rcdist.config.validation import all_keys, is_section
from rcdist.errors import ConfigError


class Arguments(Section):
    """Do something small."""

    checkpoint: str
    """Folder to read."""
    prompts: list[str] = []
    """Texts to continue."""


def line_of(arguments: list[str]) -> str:
    with pytest.raises(ConfigError) as caught:
        read_config(arguments, "test")
    return str(caught.value)


def test_every_key_says_what_it_means() -> None:
    for key, field in all_keys(JobConfig):
        assert is_section(field.annotation) or (field.description or "").endswith("."), key


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        (
            "--train.stepz=3",
            "train.stepz=3: there is no such key, on the command line. The nearest one is train.steps.",
        ),
        ("--steps=3", "steps=3: there is no such key, on the command line. The nearest one is train.steps."),
        (
            "--model.seq_len=3",
            "model.seq_len=3: there is no such key, on the command line. The nearest one is data.seq",
        ),
        ("--quux=3", "quux=3: there is no such key, on the command line. See --help for all keys."),
        ("--train.steps", "argument --train.steps: expected one argument. See test --help."),
    ],
)
def test_an_unknown_key_names_the_nearest_by_its_path_or_its_last_part(argument: str, expected: str) -> None:
    assert line_of([argument]).startswith(expected)


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ("--train.steps=0", "train.steps=0: must be >= 1. It means: Optimizer steps (default "),
        ("--train.steps=x", 'train.steps="x": must be a valid integer'),
        ("--train.zero_stage=4", "train.zero_stage=4: must be <= 3."),
        ("--model.norm=x", "model.norm=\"x\": must be 'shared' or 'per_projection'."),
        ("--checkpoint.resume=maybe", 'checkpoint.resume="maybe": must be a valid boolean'),
        ("--optimizer.eps=inf", "optimizer.eps=inf: must be a finite number."),
        ("--data.train=[1]", "data.train.0=1: must be a valid string."),
        ("--reservoir.connectivity=2", "reservoir.connectivity=2: must be <= 1."),
        ("--reservoir.connectivity={c: 2}", "reservoir.connectivity.c=2: must be <= 1."),
        ("--reservoir.connectivity={c: 1", 'reservoir.connectivity="{c: 1": is not YAML: '),
        ("--train={steps: 0}", "train.steps=0: must be >= 1."),
        ("--train=5", "train=5: is a section of keys."),
    ],
)
def test_a_wrong_value_names_the_place_and_the_rule(argument: str, expected: str) -> None:
    assert line_of([argument]).startswith(expected)


def test_a_long_value_is_shortened() -> None:
    assert line_of([f"--name={'a ' * 100}"]).startswith(f'name="{"a " * 38}a...": ')


def test_an_error_of_our_own_comes_through_as_it_was() -> None:
    with pytest.raises(ConfigError) as caught:
        config_from_dict({"reservoir": {"plan": "T cG@a x"}})
    assert caught.value.field == "reservoir.plan"
    assert caught.value.__cause__ is None
    assert "unknown matrix letter 'x' in token 3" in str(caught.value)


def test_small_settings_of_a_job_are_read_the_same_way() -> None:
    def read(*arguments: str) -> Arguments:
        return parse_cli(Arguments, arguments, prog="test")

    repeated = read("--checkpoint=[x]", "--prompts=[a", "--prompts=b, c")
    assert (repeated.checkpoint, repeated.prompts) == ("[x]", ["[a", "b, c"])
    assert read("--checkpoint=None", "--prompts=[a, b]") == Arguments(checkpoint="None", prompts=["a", "b"])
    with pytest.raises(ConfigError) as caught:
        read()
    assert str(caught.value) == "checkpoint=None: has no default and is not given. Give --checkpoint: Folder to read."


@pytest.mark.parametrize("raw", [{"a": {"\ud800": None}}, {"a": ["\ud800"]}, {"a": "\ud800"}])
def test_a_text_that_no_file_can_hold_is_refused_wherever_it_stands(raw: dict) -> None:
    with pytest.raises(ConfigError, match=r"deepspeed.*: settings are UTF-8"):
        config_from_dict({"deepspeed": raw})
