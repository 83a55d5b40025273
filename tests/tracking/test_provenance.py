"""Flattened parameters, versions, the commit, and no password anywhere."""

import re

import pytest

from rcdist.config import JobConfig
from rcdist.tracking.provenance import MAX_PARAM_CHARS, collect_tags, flatten_params, redact, redact_tree


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("http://ada:s3cret@host:5000/x", "http://***@host:5000/x"),
        ("postgresql+psycopg2://ada:p@ss:w@db/mlflow", "postgresql+psycopg2://***@db/mlflow"),
        ("mysql://db/x?user=a&password=s3cret&ssl=1", "mysql://db/x?user=a&password=***&ssl=1"),
        ("no answer from https://:s3cret@h and http://b:s3cret@i", "no answer from https://***@h and http://***@i"),
        ("sqlite:////home/a/mlflow.db", "sqlite:////home/a/mlflow.db"),
        ("http://host:5000/a@b", "http://host:5000/a@b"),
        ("https://hf_s3cret@hub.co/x", "https://***@hub.co/x"),
        ("postgresql://ada:s3/cr@et@db/x", "postgresql://***@db/x"),
        ("get x?api_key=s3cret&n=1", "get x?api_key=***&n=1"),
        ('{"access_key": "s3cret", "max_tokens": 4}', '{"access_key": "***", "max_tokens": 4}'),
        ("Authorization: Bearer s3cret", "Authorization: Bearer ***"),
        ("hf_token: s3cret, tokenizer: bpe", "hf_token: ***, tokenizer: bpe"),
        ("flops_per_token: 12", "flops_per_token: 12"),
    ],
)
def test_redact(text: str, clean: str) -> None:
    assert redact(text) == clean


def test_flatten_gives_every_setting_its_dotted_name() -> None:
    config = JobConfig(name="x", tracking={"uri": "http://ada:s3cret@host"}, deepspeed={"a": {"b": [1, None]}})
    flat = flatten_params(config.model_dump())
    assert flat["model.width"] == "256"
    assert flat["deepspeed.a.b"] == "[1, null]"
    assert flat["data.train"] == '["austen"]'
    assert flat["tracking.uri"] == "http://***@host"
    assert flat["checkpoint.resume"] == "True"
    assert flatten_params({"deepspeed": {}}) == {"deepspeed": "{}"}


def test_long_values_are_cut() -> None:
    assert len(flatten_params({"a": ["x" * 9000]})["a"]) == MAX_PARAM_CHARS


def test_redact_tree_keeps_what_is_not_text() -> None:
    tree = {"a": ["http://u:p@h", 1, None], "b": {"c": True}, "flops_per_token": {"train": 12}}
    assert redact_tree(tree) == tree | {"a": ["http://***@h", 1, None]}


def test_whatever_is_named_like_a_secret_is_hidden_in_the_raw_section_too() -> None:
    config = JobConfig(deepspeed={"wandb": {"api_key": "s3cret", "team": "x"}, "log": {"token": None, "tokens": 3}})
    assert "s3cret" not in str(flatten_params(config.model_dump()))
    assert redact_tree(config.deepspeed) == {
        "wandb": {"api_key": "***", "team": "x"},
        "log": {"token": None, "tokens": 3},
    }
    assert redact_tree({"secrets": ["a"]}) == {"secrets": "***"}


def test_tags_have_versions_and_the_commit_of_the_checkout() -> None:
    tags = collect_tags()
    assert tags["version.ray"].startswith("2.")
    assert re.fullmatch(r"[0-9a-f]{40}", tags.get("mlflow.source.git.commit", "0" * 40))
    assert ("git.changed" in tags) == ("mlflow.source.git.commit" in tags)
