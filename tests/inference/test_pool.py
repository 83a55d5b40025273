"""Texts that several Ray workers measure are as likely as in one process, in the order in which they were given."""

from pathlib import Path

import pytest
import torch

import rcdist.inference.pool as module
from rcdist.data.tokenizer import Tokenizer
from rcdist.inference.likelihood import measure_likelihoods
from rcdist.inference.load import load_model
from rcdist.inference.pool import LikelihoodPool
from tests.inference.test_packed import settings, trained, write


@pytest.mark.slow
def test_workers_measure_what_one_process_does(ray_cpu: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_TEXTS_AT_ONCE", 3)
    config = settings({"plan": "T cG@a"})
    write(tmp_path / "packed", trained(config), Tokenizer(None), config, 5, "")
    requests = [([256, *range(i)], list(range(60, 60 + i % 7 + 1))) for i in range(20)]
    found = LikelihoodPool(tmp_path / "packed", 2, "cpu", 1).measure(requests)
    expected = measure_likelihoods(load_model(tmp_path / "packed", torch.device("cpu")), requests)
    assert [each.is_greedy for each in found] == [each.is_greedy for each in expected]
    assert [each.nats for each in found] == pytest.approx([each.nats for each in expected], rel=1e-5)
