"""Settings: presets, ranges, and checks that need more than one key."""

from pathlib import Path

import pytest
import yaml

from rcdist.config import JobConfig, per_letter
from rcdist.config.cli import config_from_dict, dump_config, read_config
from rcdist.errors import ConfigError
from rcdist.model.cost import count_parameters
from tests.conftest import ROOT

PRESETS = ROOT / "jobs" / "configs"
PRESET_FILES = sorted(PRESETS.glob("*.yaml"))


def test_there_are_five_presets_and_tiny_is_the_default() -> None:
    assert {path.stem for path in PRESET_FILES} == {"tiny", "small", "370m", "1.3b", "2.7b"}
    assert read_config(["--config", "tiny"], "test", presets=PRESETS) == JobConfig()


@pytest.mark.parametrize("path", PRESET_FILES, ids=lambda path: path.stem)
def test_every_preset_is_valid_and_reads_back_from_its_resolved_form(path: Path, tmp_path: Path) -> None:
    config = read_config(["--config", str(path)], "test")
    assert config.name == path.stem
    resolved = tmp_path / "resolved.yaml"
    resolved.write_text(dump_config(config))
    assert read_config(["--config", str(resolved)], "test") == config
    assert config_from_dict(config.model_dump(mode="json")) == config


@pytest.mark.parametrize(
    ("preset", "stored"),
    [("370m", 374_108_160), ("1.3b", 1_364_779_008), ("2.7b", 2_702_357_504)],
)
def test_large_presets_have_the_published_sizes(preset: str, stored: int) -> None:
    config = read_config(["--config", preset], "test", presets=PRESETS)
    assert count_parameters(config.architecture).stored == stored
    tokens = config.train.steps * config.train.global_batch_tokens
    target = {"370m": 15e9, "1.3b": 100e9, "2.7b": 100e9}[preset]
    assert abs(tokens - target) / target < 0.001


def test_370m_with_one_norm_per_input_and_the_two_shared_plans() -> None:
    def stored(*arguments: str) -> int:
        config = read_config(["--config=370m", *arguments], "test", presets=PRESETS)
        return count_parameters(config.architecture).stored

    baseline = stored()
    assert stored("--model.norm=shared") == 374_008_832
    assert 1 - stored("--reservoir.plan=c@a", "--reservoir.gain=false") / baseline == pytest.approx(0.064, abs=0.001)
    assert 1 - stored("--reservoir.plan=G@a", "--reservoir.gain=false") / baseline == pytest.approx(0.177, abs=0.001)


def test_the_command_line_is_over_the_file_is_over_the_defaults(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(yaml.safe_dump({"train": {"steps": 7, "zero_stage": 1}}))
    config = read_config(["--config", str(file), "--train.steps", "9", "--reservoir.plan", "T cG@a"], "test")
    assert (config.train.steps, config.train.zero_stage, config.train.micro_batch_size) == (9, 1, 8)
    assert config.reservoir.plan == "T cG@a"


def test_maps_lists_none_and_booleans_from_the_command_line() -> None:
    config = read_config(
        [
            "--reservoir.connectivity={c: 0.25, G: 0.5}",
            "--data.train=a.txt",
            "--data.train=b.txt",
            "--optimizer.clip_norm=None",
            "--checkpoint.resume=false",
            "--deepspeed={zero_optimization: {overlap_comm: false}}",
        ],
        "test",
    )
    assert per_letter(config.reservoir.connectivity, "c", 1.0) == 0.25
    assert per_letter(config.reservoir.connectivity, "f", 1.0) == 1.0
    assert config.data.train == ["a.txt", "b.txt"]
    assert config.optimizer.clip_norm is None
    assert config.checkpoint.resume is False
    assert config.deepspeed == {"zero_optimization": {"overlap_comm": False}}


def test_the_plan_is_kept_in_its_normal_form() -> None:
    assert JobConfig(reservoir={"plan": "T  Gc@a"}).reservoir.plan == "T cG@a"


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ({"model": {"widht": 3}}, "model.widht=3: .*model.width"),
        ({"train": 3}, "train=3: "),
        ({"train": {"zero_stage": 4}}, "train.zero_stage=4: .*3"),
        ({"name": "a/b"}, 'name="a/b": '),
        ({"train": {"global_batch_tokens": 300}}, "not a multiple of data.seq_len=256. Use 256 or 512."),
    ],
)
def test_wrong_settings_name_key_and_rule(data: dict, expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        config_from_dict(data)
