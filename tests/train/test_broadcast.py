"""The bank that a worker receives: proved against the driver's digest, or refused naming both."""

import dataclasses

import pytest
import ray
import torch

from rcdist.config import JobConfig
from rcdist.errors import ClusterError
from rcdist.model.reservoir import ReservoirBank, build_bank
from rcdist.train.broadcast import compare_matrix, receive_bank

CONFIG = JobConfig(model={"num_layers": 3, "width": 32, "glu_width": 48}, reservoir={"plan": "cG@a f+r"})


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cpu", "one_rank")
def test_received_and_regenerated_banks_are_the_same_bytes() -> None:
    packed = build_bank(CONFIG.architecture).pack()
    received, arrival = receive_bank(CONFIG, ray.put(packed), packed.digest)
    regenerated, none_arrived = receive_bank(CONFIG, None, packed.digest)
    assert arrival["reservoir/digest_ok"] == none_arrived["reservoir/digest_ok"] == 1.0
    # By Ray's own account: the bytes, and some hundred for the rest of the object.
    assert packed.data.nbytes < arrival["wire/start_bytes"] < packed.data.nbytes + 5000
    assert none_arrived["wire/start_bytes"] == 0.0
    assert received.digests() == regenerated.digests() == packed.digests
    for spec in received.specs:
        assert torch.equal(received.matrix(spec.key), regenerated.matrix(spec.key))
        assert received.matrix(spec.key).dtype == torch.int8


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cpu", "one_rank")
def test_a_flipped_bit_on_the_way_is_refused_naming_both_digests() -> None:
    packed = build_bank(CONFIG.architecture).pack()
    data = packed.data.copy()
    data[100] ^= 1
    damaged = dataclasses.replace(packed, data=data)
    with pytest.raises(ClusterError) as caught:
        receive_bank(CONFIG, ray.put(damaged), packed.digest)
    assert next(iter(packed.digests.values()))[:16] in str(caught.value)


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cpu", "one_rank")
def test_another_seed_is_refused_naming_both_digests() -> None:
    expected = build_bank(CONFIG.architecture).digest()
    other = CONFIG.model_copy(deep=True)
    other.reservoir.seed = 1
    found = build_bank(other.architecture).digest()
    with pytest.raises(ClusterError) as caught:
        receive_bank(other, None, expected)
    assert expected in str(caught.value) and found in str(caught.value)


@pytest.mark.usefixtures("one_rank")
def test_a_bit_that_flips_later_in_memory_is_found() -> None:
    bank: ReservoirBank = build_bank(CONFIG.architecture)
    key = bank.specs[0].key
    expected = bank.digest_of(key)
    assert compare_matrix(bank, key, expected) is None
    bank.matrix(key)[0, 0] += 1
    assert expected in str(compare_matrix(bank, key, expected))
