"""A text that is continued among others is the one that is made alone, whoever comes and goes."""

import random
from collections import defaultdict

import pytest
import torch

from rcdist.data.tokenizer import Tokenizer
from rcdist.inference.decoder import PREFILL_TOKENS
from rcdist.inference.generate import Sampling, generate_ids
from rcdist.model.lm import LanguageModel
from rcdist.serve import batcher as batching
from rcdist.serve.batcher import Batcher, News, Text
from tests.serve.conftest import small_model

TOKENIZER = Tokenizer(None)


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    return small_model()


class Notes:
    """Gather the news of a batcher."""

    def __init__(self) -> None:
        self.tokens: dict[Text, list[int]] = defaultdict(list)
        self.reasons: dict[Text, str] = {}

    def __call__(self, news: list[News]) -> None:
        for one in news:
            assert one.text not in self.reasons
            if one.token is not None:
                self.tokens[one.text].append(one.token)
            if one.reason is not None:
                self.reasons[one.text] = one.reason


def make_texts(count: int) -> list[Text]:
    draw = random.Random(0)
    texts = []
    for i in range(count):
        prompt = [TOKENIZER.eod_id, *(draw.randrange(256) for _ in range(draw.choice([0, 1, 5, 30])))]
        sampling = Sampling() if i % 2 else Sampling(1.0, draw.choice([None, 20]), draw.choice([1.0, 0.9]), seed=i)
        texts.append(Text(prompt, draw.choice([1, 2, 10, 40]), sampling))
    return texts


def alone(model: LanguageModel, text: Text) -> list[int]:
    ids = generate_ids(
        model,
        text.prompt_ids,
        max_tokens=text.max_tokens,
        sampling=text.sampling,
        stop_ids={TOKENIZER.eod_id},
        known_ids=TOKENIZER.known_ids,
    )
    return list(ids)


@pytest.mark.parametrize("max_running", [1, 5])
def test_each_text_is_as_if_made_alone(model: LanguageModel, max_running: int) -> None:
    notes, draw = Notes(), random.Random(1)
    batcher = Batcher(model, TOKENIZER, notes, max_running=max_running, max_waiting=30)
    if max_running > 1:
        batcher.warm_up()
    texts = make_texts(24)
    coming = list(texts)
    while coming or batcher.num_running + batcher.num_waiting:
        assert batcher.num_running <= max_running
        if coming and draw.random() < 0.3:
            some = [coming.pop() for _ in range(min(draw.randrange(1, 6), len(coming)))]
            assert batcher.submit(some)
        batcher.advance()
    for text in texts:
        expected = alone(model, text)
        assert notes.tokens[text] == expected, text
        assert notes.reasons[text] == ("length" if len(expected) == text.max_tokens else "stop")


def test_long_prompts_are_read_in_the_same_parts(model: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batching, "PUBLISHING_S", 0.0)
    notes = Notes()
    batcher = Batcher(model, TOKENIZER, notes, max_running=3, max_waiting=3)
    short, long = Text([256, 65], 30, Sampling()), Text([256, *range(200)] * 25, 5, Sampling())
    assert len(long.prompt_ids) > 2 * PREFILL_TOKENS
    batcher.submit([short, long])
    batcher.advance()
    made = len(notes.tokens[short])
    batcher.advance()  # in the middle of the long prompt, the short text goes on
    assert len(notes.tokens[short]) == made + 1 and not notes.tokens[long]
    while batcher.num_running:
        batcher.advance()
    assert notes.tokens[long] == alone(model, long) and notes.tokens[short] == alone(model, short)


def test_what_is_cancelled_leaves_at_once(model: LanguageModel) -> None:
    notes = Notes()
    batcher = Batcher(model, TOKENIZER, notes, max_running=2, max_waiting=2)
    texts = [Text([256, i], 50, Sampling()) for i in range(4)]
    assert batcher.submit(texts)
    assert not batcher.submit([Text([256], 1, Sampling())])
    batcher.advance()
    for text in (texts[0], texts[2]):
        batcher.cancel(text)
    while batcher.num_running + batcher.num_waiting:
        batcher.advance()
    assert notes.reasons.keys() == {texts[1], texts[3]}
    assert notes.tokens[texts[3]] == alone(model, texts[3]) and not notes.tokens[texts[2]]


def test_an_error_ends_every_text(model: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    notes = Notes()
    batcher = Batcher(model, TOKENIZER, notes, max_running=2, max_waiting=4)
    texts = [Text([256, i], 50, Sampling()) for i in range(5)]
    batcher.submit(texts)
    turns = iter(range(3))
    real = batcher.advance
    monkeypatch.setattr(batcher, "advance", lambda: (next(turns), real()))
    with pytest.raises(StopIteration):
        batcher.run()
    assert set(notes.reasons) == set(texts) and set(notes.reasons.values()) == {"error"}
    assert not batcher.is_alive and not batcher.submit([Text([256], 1, Sampling())])


def test_ids_that_no_text_has_are_not_made(model: LanguageModel) -> None:
    notes, tokenizer = Notes(), Tokenizer(None)
    tokenizer.__dict__["known_ids"] = frozenset(range(65, 70))
    batcher = Batcher(model, tokenizer, notes, max_running=2, max_waiting=2)
    batcher.submit([Text([256, 65], 30, Sampling()), Text([256, 65], 30, Sampling(1.0))])
    while batcher.num_running + batcher.num_waiting:
        batcher.advance()
    assert {token for made in notes.tokens.values() for token in made} <= set(range(65, 70))
    assert torch.is_grad_enabled()
