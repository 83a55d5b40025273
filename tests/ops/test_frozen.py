"""The frozen product: exact codes, every topology with and without gain, and no weight gradient."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from rcdist.config import Architecture, ModelConfig, ReservoirConfig
from rcdist.model.reservoir import build_bank
from rcdist.ops.frozen import frozen_product
from rcdist.ops.quantise import Quantised, quantise_tokens, quantise_weight
from rcdist.ops.ternary import ternary_product
from rcdist.ops.topology import DenseMap, LinearMap


def dense(ternary: torch.Tensor) -> LinearMap:
    return DenseMap({"ternary": ternary}, tuple(ternary.shape))


def test_codes_are_summed_exactly() -> None:
    values = torch.full((1, 4099), 127, dtype=torch.int8)
    ternary = torch.ones(3, 4099, dtype=torch.int8)
    y = frozen_product(Quantised(torch.zeros(1, 4099), values, None), dense(ternary), 1.0)
    assert y.tolist() == [[127.0 * 4099] * 3]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("has_gain", [True, False])
@pytest.mark.parametrize(
    ("topology", "letter"),
    [("dense", "c"), ("dense", "D"), ("block", "G"), ("hadamard", "G"), ("hadamard", "D"), ("ring", "c")],
)
def test_equals_the_dequantised_product(topology: str, letter: str, has_gain: bool, dtype: torch.dtype) -> None:
    config = ReservoirConfig(plan=letter, topology=topology, block_size=8)
    bank = build_bank(Architecture(ModelConfig(num_layers=1, width=24, glu_width=48), config))
    (spec,) = bank.specs
    outputs, inputs = spec.shape
    matrix = bank.linear_map(spec.key)
    table = matrix.times(torch.eye(inputs)).t()
    x = torch.randn(4, 6, inputs).to(dtype).requires_grad_()
    gain = torch.randn(outputs).to(dtype).requires_grad_() if has_gain else None
    leaves = [leaf for leaf in (x, gain) if leaf is not None]
    tokens = quantise_tokens(x)
    y = frozen_product(tokens, matrix, 0.25, gain)
    assert y.dtype == dtype
    straight = x.float() + (tokens.values * tokens.scale - x.float()).detach()
    expected = straight @ (table * 0.25).t() * (1.0 if gain is None else gain.float())
    dy = torch.randn(4, 6, outputs).to(dtype)
    found = (y, *torch.autograd.grad(y, leaves, dy))
    tolerance = {"rtol": 2e-2, "atol": 2e-1} if dtype == torch.bfloat16 else {"rtol": 1e-5, "atol": 1e-5}
    for a, b in zip(found, (expected, *torch.autograd.grad(expected, leaves, dy.float())), strict=True):
        torch.testing.assert_close(a.float(), b.float(), **tolerance)


def test_a_frozen_matrix_computes_no_weight_gradient() -> None:
    # float64 goes through aten::mm, which the counter sees; its forward product is 2 M N K as well.
    x = torch.randn(10, 32, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(16, 32, dtype=torch.float64, requires_grad=True)
    ternary = torch.randint(-1, 2, (16, 32), dtype=torch.int8)
    one_product = 2 * 10 * 16 * 32

    def count(product: str) -> int:
        with FlopCounterMode(display=False) as counter:
            tokens = quantise_tokens(x, "identity")
            y = (
                frozen_product(tokens, dense(ternary), 1.0)
                if product == "frozen"
                else ternary_product(tokens, quantise_weight(weight, "identity"))
            )
            y.sum().backward()
        return counter.get_total_flops()

    assert count("trained") == 3 * one_product
    assert count("frozen") == 2 * one_product
