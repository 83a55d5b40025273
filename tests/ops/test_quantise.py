"""Q8 and Q158 by hand numbers, and the exact pass-through."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from rcdist.ops.quantise import quantise_tokens, quantise_weight


def test_tokens_by_hand() -> None:
    x = torch.tensor([[0.0, 1.0, -2.0, 0.5], [0.0, 0.0, 0.0, 1e-6]])
    q = quantise_tokens(x)
    # s = 127 / 2 = 63.5: 63.5 and 31.75 round to 64 (half to even) and 32; the second row's scale is floored at 1e-5.
    assert q.values.tolist() == [[0, 64, -127, 32], [0, 0, 0, 13]]
    torch.testing.assert_close(q.scale, torch.tensor([[2 / 127], [1e-5 / 127]]))
    assert q.handle is x
    assert q.values.dtype == torch.int8


def test_weight_by_hand() -> None:
    weight = torch.tensor([[0.1, -0.2, 0.3], [-0.4, 0.5, 0.0]])
    q = quantise_weight(weight)
    # beta = 1.5 / 6 = 0.25; quotients 0.4 -0.8 1.2 -1.6 2 0.
    assert q.values.tolist() == [[0, -1, 1], [-1, 1, 0]]
    torch.testing.assert_close(q.scale, torch.tensor(0.25))
    assert quantise_weight(torch.zeros(2, 2)).scale == torch.tensor(1e-5)


def test_bfloat16_is_quantised_as_its_float32_copy() -> None:
    weight, x = torch.randn(31, 17).bfloat16(), torch.randn(9, 17).bfloat16()
    for low, high in (
        (quantise_weight(weight), quantise_weight(weight.float())),
        (quantise_tokens(x), quantise_tokens(x.float())),
    ):
        assert torch.equal(low.values, high.values)
        assert torch.equal(low.scale, high.scale)
        assert low.scale.dtype == torch.float32


def test_identity_passes_through() -> None:
    x = torch.randn(3, 5) * 1000
    for q in (quantise_tokens(x, "identity"), quantise_weight(x, "identity")):
        assert torch.equal(q.values, x)
        assert q.scale is None


def test_not_finite_stays_not_finite() -> None:
    for bad in (float("nan"), float("inf")):
        q = quantise_tokens(torch.tensor([[1.0, bad]]))
        assert not (q.values.float() * q.scale).isfinite().all()


@given(st.lists(st.floats(-(2.0**100), 2.0**100, width=32), min_size=1, max_size=9))
def test_the_largest_value_is_kept_and_the_error_is_half_a_step(values: list[float]) -> None:
    x = torch.tensor([values])
    q = quantise_tokens(x)
    assert q.values.abs().max() <= 127
    error = (q.values * q.scale - x).abs().max()
    assert error <= 0.501 * q.scale
