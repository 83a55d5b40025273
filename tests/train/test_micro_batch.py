"""A number stays as it is; auto is decided once: on a CPU 2048 tokens, on a GPU (gpu/test_steps) what fits."""

import pytest
import torch

from rcdist.train.deepspeed_config import max_windows, split_batch
from rcdist.train.micro_batch import with_micro_batch
from tests.train.zero_worker import SEQ_LEN, build_model, job

CPU = torch.device("cpu")


def test_a_number_stays() -> None:
    config = job(1)
    assert with_micro_batch(config, build_model(config), CPU) is config


def test_auto_is_2048_tokens_on_a_cpu() -> None:
    config = job(1, micro_batch_size="auto")
    found = with_micro_batch(config, build_model(config), CPU)
    assert max_windows(found) == 2048 // SEQ_LEN
    assert split_batch(found, 1) == (config.windows_per_step, 1)
    assert (config.train.micro_batch_size, max_windows(config)) == ("auto", 1)


@pytest.mark.parametrize("value", ["most", 0])
def test_anything_else_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match="micro_batch_size"):
        job(1, micro_batch_size=value)
