"""How the batch is split, and which raw DeepSpeed keys pass."""

import pytest

from rcdist.config import JobConfig
from rcdist.errors import ConfigError
from rcdist.train.deepspeed_config import OWNED_KEYS, build_deepspeed_config, split_batch


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
    assert written["zero_optimization"]["overlap_comm"] is False
    assert written["zero_optimization"]["stage"] == 2
    assert written["zero_optimization"]["reduce_bucket_size"] == 1000
    assert written["gradient_clipping"] == 1.0


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
