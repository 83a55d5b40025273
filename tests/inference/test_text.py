"""Text that comes token by token is the text of all tokens, in whole characters, and ends before a stop string."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rcdist.data.tokenizer import Tokenizer
from rcdist.inference.text import StopStrings, TextStream
from tests.data.kinds import all_kinds

TEXTS = st.text(alphabet="ab it.\n\t éü東\U0001f600́", max_size=30)


@pytest.fixture(scope="module")
def kinds(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tokenizer]:
    return all_kinds(tmp_path_factory.mktemp("kinds"))


@pytest.mark.parametrize("kind", ["bytes", "bpe", "byte-level", "byte-fallback", "words", "characters"])
@settings(max_examples=40)
@given(prompt=TEXTS, text=TEXTS, at_once=st.integers(1, 5))
def test_pieces_are_the_text_in_whole_characters(
    kind: str, kinds: dict[str, Tokenizer], prompt: str, text: str, at_once: int
) -> None:
    tokenizer = kinds[kind]
    before, ids = tokenizer.encode_batch([prompt, text])
    stream = TextStream(tokenizer, before[-16:])
    pieces = [stream.push(ids[i : i + at_once]) for i in range(0, len(ids), at_once)]
    assert not any("\ufffd" in piece for piece in pieces)
    context = tokenizer.decode(before[-16:])
    assert context + "".join(pieces) + stream.finish() == tokenizer.decode([*before[-16:], *ids])


@settings(max_examples=100)
@given(ids=st.lists(st.integers(0, 255), max_size=20))
def test_bytes_that_make_no_character_come_as_replacements_and_are_not_lost(ids: list[int]) -> None:
    tokenizer = Tokenizer(None)
    stream = TextStream(tokenizer)
    pieces = [stream.push([token]) for token in ids]
    assert "".join(pieces) + stream.finish() == tokenizer.decode(ids)


def test_a_blank_in_front_of_a_word_is_kept_and_memory_does_not_grow(kinds: dict[str, Tokenizer]) -> None:
    tokenizer = kinds["byte-fallback"]
    (ids,) = tokenizer.encode_batch(["it is"])
    stream = TextStream(tokenizer, ids)
    (more,) = tokenizer.encode_batch([" in the sun" * 50])
    text = "".join(stream.push([token]) for token in more) + stream.finish()
    assert text == tokenizer.decode([*ids, *more]).removeprefix("it is") and text.startswith(" ")
    assert len(stream._ids) < 40


@settings(max_examples=200)
@given(
    text=st.text(alphabet="abc", max_size=20),
    cuts=st.lists(st.integers(0, 20), max_size=6),
    stops=st.lists(st.text(alphabet="abc", min_size=1, max_size=4), max_size=3),
)
def test_text_ends_before_the_first_stop_string_however_it_is_cut(text: str, cuts: list[int], stops: list[str]) -> None:
    places = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    stop, shown = StopStrings(stops), ""
    for start, end in itertools.pairwise(places):
        shown += stop.push(text[start:end])
        if stop.is_found:
            break
    else:
        shown += stop.finish()
    # What is complete first ends the text: a longer string that began before it may not be complete yet.
    ends = [i + len(s) for s in stops if (i := text.find(s)) >= 0]
    assert stop.is_found == bool(ends)
    if ends:
        assert shown == text[: len(shown)] and not any(s in shown for s in stops)
        assert any(text[len(shown) :].startswith(s) for s in stops)
    else:
        assert shown == text
