"""The plain port is the same model: with the same weights and no rounding, the same loss and gradients."""

import torch

from rcdist.benchmark.reference_model import ReferenceModel, scan_log_depth
from rcdist.config import Architecture, ModelConfig, ReservoirConfig
from rcdist.model.lm import LanguageModel
from rcdist.model.reservoir import build_bank
from tests.ops.test_scan import scan_step_by_step

CONFIG = ModelConfig(num_layers=2, width=16, glu_width=24, vocab_size=50, norm="per_projection", rounding="identity")


def test_scan_in_log_depth() -> None:
    f, c, starts = torch.rand(2, 13, 5), torch.randn(2, 13, 5), torch.rand(2, 13) < 0.2
    torch.testing.assert_close(scan_log_depth(f, c, starts), scan_step_by_step(f, c, None, starts)[0])


def test_the_port_is_the_same_model() -> None:
    plan = ReservoirConfig(plan="T")
    ours = LanguageModel(Architecture(CONFIG, plan), build_bank(Architecture(CONFIG, plan)), 0)
    port = ReferenceModel(CONFIG)
    pairs = [(port.embedding.weight, ours.embedding.weight), (port.bounds, ours.lower_bounds.weight)]
    pairs += [(port.head.weight, ours.head.weight)]
    for block, mine in zip(port.blocks, ours.blocks, strict=True):
        for name in "fcgo":
            pairs.append((getattr(block, name).weight, getattr(mine.mlgru, f"{name}_proj").weight))
        pairs.append((block.down.weight, mine.glu.down_proj.weight))
        joined = torch.cat([mine.glu.gate_proj.weight, mine.glu.up_proj.weight])
        block.gate_up.weight.data.copy_(joined.detach())
    for theirs, source in pairs:
        theirs.data.copy_(source.detach())
    tokens = torch.randint(50, (2, 10))
    loss, expected = port(tokens[:, :-1], tokens[:, 1:]), ours(tokens[:, :-1], None, tokens[:, 1:]) / 18
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
    loss.backward()
    expected.backward()
    for theirs, source in pairs:
        torch.testing.assert_close(theirs.grad, source.grad, rtol=1e-3, atol=1e-5)
