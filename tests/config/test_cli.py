"""What a job does on its command line: help, resolved settings, quick start."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

from rcdist.config import JobConfig
from rcdist.config.cli import read_config
from tests.conftest import ROOT


def run_pretrain(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "jobs" / "pretrain.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def leaves(model: type[BaseModel], prefix: str = "") -> list[str]:
    names: list[str] = []
    for name, field in model.model_fields.items():
        annotation: Any = field.annotation
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            names += leaves(annotation, f"{prefix}{name}.")
        else:
            names.append(prefix + name)
    return names


def test_help_lists_every_key_with_its_text_and_default() -> None:
    done = run_pretrain("--help")
    assert done.returncode == 0
    for name in leaves(JobConfig):
        assert f"--{name} " in done.stdout, name
    text = " ".join(done.stdout.split())
    assert "Optimizer steps." in text and "(default: 600)" in text


def test_show_config_prints_settings_that_read_back(tmp_path: Path) -> None:
    done = run_pretrain("--show-config", "--train.steps=3", "--reservoir.plan=Gc@a")
    assert done.returncode == 0
    path = tmp_path / "c.yaml"
    path.write_text(done.stdout)
    config = read_config(["--config", str(path)], "test")
    assert (config.train.steps, config.reservoir.plan) == (3, "cG@a")
    assert yaml.safe_load(done.stdout)["train"]["steps"] == 3


def test_reading_settings_imports_nothing_heavy() -> None:
    code = "import sys, rcdist.config.cli; print([m for m in ('torch','ray','deepspeed','mlflow') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, cwd=ROOT)
    assert done.stdout.strip() == "[]", done.stderr


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("train:\n  steps: [1\n", "line 3"),
        ("train:\n  steps: 1\n  steps: 2\n", "key 'steps' stands twice"),
        ("- a\n", "holds no map of settings"),
        ("train:\n  step: 1\n", "train.steps"),
    ],
)
def test_a_wrong_file_is_one_line(tmp_path: Path, content: str, expected: str) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(content)
    done = run_pretrain("--config", str(path))
    assert done.returncode == 2
    assert expected in done.stderr and done.stderr.count("\n") == 1, done.stderr
