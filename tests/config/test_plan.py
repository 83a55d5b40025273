"""Plan strings: what they mean, their normal form, and errors that name the token."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rcdist.config.plan import LETTERS, BlockPlan, parse_plan
from rcdist.errors import ConfigError


def test_the_example_shares_two_matrices_over_every_second_block() -> None:
    plan = parse_plan("T cG@a")
    blocks = plan.tile(6)
    assert [block.letters for block in blocks] == ["", "cG"] * 3
    assert {plan.matrix_key(i, "c", blocks[i]) for i in (1, 3, 5)} == {"c@a"}
    assert plan.matrix_key(1, "G", blocks[1]) == "G@a"


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("T", "T"),
        ("  T   T ", "T*2"),
        ("Gc@a", "cG@a"),
        ("T*3 f*2", "T*3 f*2"),
        ("T T T f f", "T*3 f*2"),
        ("c=@a", "c=@a"),
        ("T+r", "T+r"),
        ("T+r@b*2", "T+r@b*2"),
        ("DUGogcf", "fcgoGUD"),
    ],
)
def test_normal_form(text: str, normal: str) -> None:
    assert str(parse_plan(text)) == normal


def test_cut_and_tiled() -> None:
    assert [str(block) for block in parse_plan("T c f").tile(2)] == ["T", "c"]
    assert [str(block) for block in parse_plan("T c f").tile(5)] == ["T", "c", "f", "T", "c"]


def test_own_matrices_are_keyed_by_block_and_inserted_ones_by_their_own_name() -> None:
    plan = parse_plan("c+r@b c+r")
    first, second = plan.tile(2)
    assert plan.matrix_key(0, "c", first) == "c.0"
    assert plan.matrix_key(0, "r", first) == "r@b"
    assert plan.matrix_key(1, "r", second) == "r.1"


def test_shared_and_trained_is_not_frozen() -> None:
    (block,) = parse_plan("cG=@a").pattern
    assert block.letters == "cG" and block.frozen_letters() == ""


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "no token"),
        ("T cG@a x", "unknown matrix letter 'x' in token 3 'x'. Letters: f c g o G U D, or T alone"),
        ("cc", "matrix letter 'c' stands twice in token 1"),
        ("Tc", "unknown matrix letter 'T'"),
        ("T@a", "T has nothing to share in token 1"),
        ("c=", "no sharing name follows in token 1"),
        ("T c@", "in token 2 'c@'"),
        ("T c!a", "unexpected character '!' in token 2"),
        ("c*0", "repeat 0 is outside 1..1024"),
        ("c*1024 c", "the pattern has 1025 blocks. Use at most 1024"),
        ("c@a c=@a", "matrix c@a is frozen in one token and trained in another"),
    ],
)
def test_errors_name_the_token(text: str, expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_plan(text)
    assert str(caught.value).startswith(f'reservoir.plan="{text}": ')
    assert expected in str(caught.value)


names = st.none() | st.text("abz09_", min_size=1, max_size=3)


@st.composite
def block_plans(draw: st.DrawFn) -> BlockPlan:
    letters = "".join(letter for letter in LETTERS if draw(st.booleans()))
    insert = draw(st.booleans())
    share = draw(names) if letters else None
    return BlockPlan(letters, share, False, insert, draw(names) if insert else None)


@given(st.lists(block_plans(), min_size=1, max_size=6))
def test_the_normal_form_reads_back_to_the_same_plan(blocks: list[BlockPlan]) -> None:
    plan = parse_plan(" ".join(map(str, blocks)))
    assert plan.pattern == tuple(blocks)
    assert parse_plan(str(plan)) == plan
    assert str(parse_plan(str(plan))) == str(plan)
