"""Steps from the tape are the model's own, whatever the plan, for one sequence and for several."""

import pytest
import torch

from rcdist.inference.decoder import Decoder
from rcdist.inference.packed import pack_model
from rcdist.ops.weights import WeightsQuantisedOnce
from tests.inference.test_packed import CHOICES, settings, tokens, trained


@pytest.mark.parametrize("choice", CHOICES, ids=str)
@pytest.mark.parametrize("batch_size", [1, 3])
@torch.no_grad()
def test_taped_steps_are_the_models(choice: dict, batch_size: int) -> None:
    model = pack_model(trained(settings(choice, norm="shared" if batch_size == 1 else "per_projection")))
    inputs = tokens()[0][:1].expand(batch_size, -1).contiguous()
    inputs[batch_size - 1] = inputs[batch_size - 1].flip(0)
    decoder, state = Decoder(model, batch_size), model.init_state(batch_size)
    for t in range(8):
        with WeightsQuantisedOnce():
            logits, state = model.step(inputs[:, t], state)
        decoder.token_B.copy_(inputs[:, t])
        decoder.step()
        assert torch.equal(decoder.logits_BV, logits) and torch.equal(decoder.state_LBS, state), t
        if t == 5:  # another sequence takes the place of one
            state[:, 0] = 0
            decoder.state_LBS[:, 0] = 0
    assert decoder.is_recorded


def test_a_prompt_of_any_length_is_read_in_parts() -> None:
    model = trained(settings({"plan": "T c+r@a", "placement": "token_shift"})).requires_grad_(False)
    inputs = tokens()[0]
    for size in (1, 7, 40, 100):
        decoder = Decoder(model, len(inputs))
        decoder.state_LBS.fill_(3)  # of what was there before, nothing is left
        decoder.prefill(inputs, size)
        whole, whole_state = model.prefill(inputs, last_only=True)
        torch.testing.assert_close(decoder.logits_BV, whole[:, -1], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(decoder.state_LBS, whole_state, rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_the_state_does_not_grow() -> None:
    model = pack_model(trained(settings({"plan": "T cG@a"})))
    sizes = set()
    for count in (1_000, 5_000):
        decoder = Decoder(model, 1)
        decoder.prefill(torch.zeros(1, count, dtype=torch.int64))
        sizes.add(decoder.state_LBS.numel() * decoder.state_LBS.element_size())
    assert sizes == {4 * 3 * 32}
