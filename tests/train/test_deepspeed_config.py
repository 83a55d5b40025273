"""How the batch is split, and which raw DeepSpeed keys pass."""

import pytest

from rcdist.config import JobConfig
from rcdist.errors import ConfigError
from rcdist.train.deepspeed_config import OWNED_KEYS, build_deepspeed_config, split_batch
from rcdist.train.deepspeed_keys import DeepSpeedKeys


def job(**sections: object) -> JobConfig:
    return JobConfig(**sections)


@pytest.mark.parametrize("num_workers", [1, 2, 3, 5, 7, 16, 40])
@pytest.mark.parametrize("micro_batch_size", [1, 3, 8])
def test_the_split_holds_the_whole_batch_with_less_than_one_micro_batch_of_padding_per_worker(
    num_workers: int, micro_batch_size: int
) -> None:
    config = job(train={"global_batch_tokens": 256 * 16, "micro_batch_size": micro_batch_size})
    size, count = split_batch(config, num_workers)
    assert size <= micro_batch_size
    assert size * count * num_workers >= 16
    assert size * count <= -(-16 // num_workers) + count - 1


def test_raw_keys_pass_through_and_auto_is_filled() -> None:
    config = job(
        train={"zero_stage": 2},
        deepspeed={"zero_optimization": {"overlap_comm": False, "stage": "auto"}, "gradient_clipping": "auto"},
    )
    written = build_deepspeed_config(config, num_workers=2, num_trained=1000)
    assert written["timers"]["throughput"]["enabled"] is False  # it waits for the device in every pass
    assert written["zero_optimization"]["overlap_comm"] is False
    assert written["zero_optimization"]["stage"] == 2
    assert written["zero_optimization"]["reduce_bucket_size"] == 1000
    assert written["gradient_clipping"] == 1.0


def test_numbers_and_switches_written_as_text_are_what_they_say() -> None:
    raw = {
        "steps_per_print": "500",
        "gradient_predivide_factor": "5e2",
        "dump_state": "no",
        "aio": {"queue_depth": 4.0},
    }
    written = build_deepspeed_config(job(deepspeed=raw), num_workers=1, num_trained=1)
    assert written["steps_per_print"] == 500 and written["gradient_predivide_factor"] == 500.0
    assert written["dump_state"] is False and written["aio"] == {"queue_depth": 4}


def test_deepspeed_has_every_key_and_default_that_is_allowed() -> None:
    """What DeepSpeed makes of a key that it does not know is nothing: a name of ours that it has not would be a lie."""
    from deepspeed.profiling.config import DeepSpeedFlopsProfilerConfig
    from deepspeed.runtime.config import DeepSpeedConfig
    from deepspeed.runtime.swap_tensor.aio_config import AIO_DEFAULT_DICT

    ours = DeepSpeedKeys()
    theirs = DeepSpeedConfig({"train_batch_size": 1})
    assert ours.aio.model_dump() == AIO_DEFAULT_DICT
    assert ours.flops_profiler.model_dump() == vars(DeepSpeedFlopsProfilerConfig({}))
    assert ours.timers.throughput.model_dump() == theirs.timers_config.model_dump()
    for name in DeepSpeedKeys.model_fields:
        if name not in OWNED_KEYS and isinstance(value := getattr(ours, name), (bool, float)):
            assert getattr(theirs, name) == value, name


@pytest.mark.parametrize("path", sorted(OWNED_KEYS))
def test_keys_that_rcdist_owns_are_refused(path: str) -> None:
    raw: object = 3
    for part in reversed(path.split(".")):
        raw = {part: raw}
    with pytest.raises(ConfigError, match=rf"deepspeed\.{path}=3: rcdist sets it from"):
        build_deepspeed_config(job(deepspeed=raw), num_workers=2, num_trained=10)


def test_auto_without_a_value_of_ours_is_refused() -> None:
    with pytest.raises(ConfigError, match=r'deepspeed\.zero_optimization\.stage3_max_live_parameters="auto"'):
        raw = {"zero_optimization": {"stage3_max_live_parameters": "auto"}}
        build_deepspeed_config(job(deepspeed=raw), num_workers=2, num_trained=10)
