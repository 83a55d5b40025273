"""How likely texts are: as one by one without padding; minimal pairs counted; bad files refused."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import rcdist.inference.likelihood as module
from rcdist.data.tokenizer import Tokenizer
from rcdist.errors import DataError
from rcdist.inference.likelihood import measure_likelihoods, measure_pairs
from rcdist.inference.load import LoadedModel
from tests.inference.test_packed import settings, trained


@pytest.fixture
def loaded() -> LoadedModel:
    config = settings({"plan": "T cG@a"})
    return LoadedModel(trained(config), Tokenizer(None), config, 0, Path())


@pytest.mark.parametrize("logits_at_once", [300, 300 * 20, 2**23])
def test_texts_together_are_as_likely_as_alone(
    loaded: LoadedModel, logits_at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_LOGITS_AT_ONCE", {"cpu": logits_at_once})
    requests = [
        ([256, *context], list(text)) for context, text in ((b"", b"a"), (b"It is", b" a truth"), (b"xy", b"!"))
    ]
    for (context, text), found in zip(requests, measure_likelihoods(loaded, requests), strict=True):
        with torch.no_grad():
            logits = loaded.model(torch.tensor([[*context, *text]]))[0, len(context) - 1 : -1]
        chances = logits.double().log_softmax(-1)
        expected = -float(chances[range(len(text)), text].sum())
        assert found.nats == pytest.approx(expected, rel=1e-5)
        assert found.is_greedy == (logits.argmax(-1).tolist() == text)


def test_a_greedy_continuation_is_known_as_one(loaded: LoadedModel) -> None:
    with torch.no_grad():
        best = int(loaded.model(torch.tensor([[256, 65]]))[0, -1].argmax())
    found = measure_likelihoods(loaded, [([256, 65], [best]), ([256, 65], [(best + 1) % 256])])
    assert [each.is_greedy for each in found] == [True, False] and found[0].nats < found[1].nats


def test_pairs_are_counted_by_kind(loaded: LoadedModel, tmp_path: Path) -> None:
    rows = {
        "sentence_good": ["a", "ab", "c", "d"],
        "sentence_bad": ["aaaa", "abcd", "c", "dd"],
        "uid": ["x", "x", "y", "y"],
    }
    pq.write_table(pa.table(rows), tmp_path / "pairs.parquet")
    found = measure_pairs(loaded, tmp_path / "pairs.parquet")
    # A longer text of the same beginning is less likely; of two alike neither wins.
    assert found == {"accuracy": 0.75, "pairs": 4.0, "x": 1.0, "y": 0.5}
    assert measure_pairs(loaded, tmp_path / "pairs.parquet", 1) == {"accuracy": 0.5, "pairs": 2.0, "x": 1.0, "y": 0.0}


@pytest.mark.parametrize(
    "content", [None, b"no parquet", {"text": ["a"]}, {"sentence_good": [], "sentence_bad": [], "uid": []}]
)
def test_files_without_pairs_are_refused(content: object, loaded: LoadedModel, tmp_path: Path) -> None:
    path = tmp_path / "pairs.parquet"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif isinstance(content, dict):
        pq.write_table(pa.table(content), path)
    with pytest.raises(DataError, match=r"^blimp=") as caught:
        measure_pairs(loaded, path)
    assert "\n" not in str(caught.value)
