"""The bank: packing, digests, buffers that nothing trains, saves or casts."""

import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rcdist.config import Architecture, ModelConfig, ReservoirConfig
from rcdist.errors import ClusterError
from rcdist.model.generator import generate
from rcdist.model.reservoir import PackedBank, ReservoirBank, build_bank, pack_ternary, unpack_ternary

MODEL = ModelConfig(num_layers=4, width=21, glu_width=33)
RESERVOIR = ReservoirConfig(plan="cG@a f+r T")


@given(st.lists(st.sampled_from([-1, 0, 1]), min_size=1, max_size=40))
def test_packing_is_undone(values: list[int]) -> None:
    ternary = np.array([values], np.int8)
    packed = pack_ternary(ternary)
    assert packed.dtype == np.uint8
    assert packed.size == (len(values) + 3) // 4
    assert np.array_equal(unpack_ternary(packed, ternary.shape), ternary)


def test_packed_bytes_by_hand() -> None:
    # 01 | 11 << 2 | 00 << 4 | 01 << 6, then 11.
    assert pack_ternary(np.array([1, -1, 0, 1, -1], np.int8)).tolist() == [0b01001101, 0b11]


def test_bank_travels_and_keeps_every_byte() -> None:
    bank = build_bank(Architecture(MODEL, RESERVOIR))
    packed: PackedBank = pickle.loads(pickle.dumps(bank.pack()))
    assert packed.data.nbytes == sum((spec.num_weights + 3) // 4 for spec in bank.specs)
    packed.data.flags.writeable = False
    received = ReservoirBank.from_packed(packed)
    assert received.specs == bank.specs
    assert received.digests() == bank.digests() == packed.digests
    assert received.digest() == bank.digest() == packed.digest
    for spec in bank.specs:
        assert torch.equal(received.matrix(spec.key), torch.from_numpy(generate(spec)["ternary"]))
        assert received.scale(spec.key) == spec.scale
        assert received.matrix(spec.key).is_contiguous()


def test_a_damaged_byte_is_named() -> None:
    packed = build_bank(Architecture(MODEL, RESERVOIR)).pack()
    data = packed.data.copy()
    data[-1] ^= 1
    last = packed.specs[-1].key
    with pytest.raises(ClusterError, match="SHA-256") as caught:
        ReservoirBank.from_packed(replace(packed, data=data))
    assert last in str(caught.value)
    assert packed.digests[last][:16] in str(caught.value)
    with pytest.raises(ClusterError, match="reservoir="):
        ReservoirBank.from_packed(replace(packed, specs=(replace(packed.specs[0], scale=3.0), *packed.specs[1:])))


def test_digest_is_of_the_resident_bytes() -> None:
    bank = build_bank(Architecture(MODEL, RESERVOIR))
    before, key = bank.digest(), bank.specs[1].key
    old = bank.digests()
    bank.matrix(key)[0, 0] = 1 if bank.matrix(key)[0, 0] != 1 else 0
    assert bank.digest() != before
    assert [k for k, digest in bank.digests().items() if digest != old[k]] == [key]


def test_buffers_are_not_trained_saved_or_cast() -> None:
    bank = build_bank(Architecture(MODEL, RESERVOIR))
    pointers = [buffer.data_ptr() for buffer in bank.buffers()]
    bank.to(torch.bfloat16)
    assert [buffer.data_ptr() for buffer in bank.buffers()] == pointers
    assert {buffer.dtype for buffer in bank.buffers()} == {torch.int8}
    assert list(bank.parameters()) == []
    assert bank.state_dict() == {}


def test_an_own_and_a_shared_matrix_may_have_like_names() -> None:
    bank = build_bank(Architecture(MODEL, ReservoirConfig(plan="c c@0")))
    assert [spec.key for spec in bank.specs] == ["c.0", "c@0", "c.2"]
    assert not torch.equal(bank.matrix("c.0"), bank.matrix("c@0"))


def test_nothing_frozen_is_an_empty_bank() -> None:
    bank = build_bank(Architecture(MODEL, ReservoirConfig(plan="T")))
    assert ReservoirBank.from_packed(bank.pack()).digest() == bank.digest()


def test_meta_device_makes_shapes_only() -> None:
    with torch.device("meta"):
        bank = build_bank(Architecture(MODEL, RESERVOIR))
    assert all(buffer.is_meta for buffer in bank.buffers())
    assert bank.matrix("G@a").shape == (33, 21)


def test_every_topology_travels() -> None:
    model = ModelConfig(num_layers=4, width=24, glu_width=48)
    topology = {
        "c": "block",
        "G": "hadamard",
        "D": "hadamard",
        "r": "ring",
        "f": "dense",
        "U": "block",
        "o": "identity",
    }
    config = ReservoirConfig(plan="cfoGUD@a+r", topology=topology, block_size=3, connectivity=0.7)
    bank = build_bank(Architecture(model, config))
    packed = bank.pack()
    received = ReservoirBank.from_packed(packed)
    assert packed.data.nbytes == sum(part.packed_bytes for spec in bank.specs for part in spec.parts().values())
    assert received.digest() == bank.digest()
    sent, found = dict(bank.named_buffers()), dict(received.named_buffers())
    assert sent.keys() == found.keys()
    assert all(torch.equal(sent[name], found[name]) for name in sent)
    for spec in bank.specs:
        x = torch.randn(2, spec.shape[1])
        y = bank.linear_map(spec.key).times(x)
        assert y.shape == (2, spec.shape[0])
        assert torch.equal(y, received.linear_map(spec.key).times(x))


@pytest.mark.parametrize("byte", [0, -1])
def test_a_damaged_permutation_is_named_too(byte: int) -> None:
    model = ModelConfig(num_layers=1, width=24)
    packed = build_bank(Architecture(model, ReservoirConfig(plan="c@a", topology="hadamard"))).pack()
    data = packed.data.copy()
    data[byte] ^= 1
    with pytest.raises(ClusterError, match="c@a"):
        ReservoirBank.from_packed(replace(packed, data=data))
