"""ReservoirPlan: the one string that says which matrices of which blocks are trained, frozen and shared."""

import re
from dataclasses import dataclass

from rcdist.errors import ConfigError

LETTERS = "fcgoGUD"
"""Matrix letters in normal order: f c g o of the MLGRU, then G (gate), U (up), D (down) of the GLU."""

RESERVOIR_LETTER = "r"
"""Key letter of the matrix of an inserted reservoir layer."""

MAX_BLOCKS = 1024
"""Longest pattern, and most layers of a model."""

_NAME = r"[A-Za-z0-9_]+"
_TOKEN = re.compile(
    rf"^(?P<letters>[A-Za-z]+)(?P<trained>=)?(?:@(?P<share>{_NAME}))?(?P<insert>\+r(?:@(?P<rshare>{_NAME}))?)?"
    r"(?:\*(?P<repeat>[0-9]+))?$"
)


@dataclass(frozen=True)
class BlockPlan:
    """Say what one block freezes and shares.

    Attributes:
        letters: matrices that are frozen (or, with `trained`, shared and trained), in the order of `LETTERS`.
        share: name under which the matrices are shared between blocks; None: the block's own.
        trained: the matrices are shared but trained, a control.
        insert: a reservoir layer is inserted.
        insert_share: sharing name of the inserted reservoir; None: the block's own.
    """

    letters: str = ""
    share: str | None = None
    trained: bool = False
    insert: bool = False
    insert_share: str | None = None

    def __str__(self) -> str:
        text = (self.letters or "T") + ("=" if self.trained else "") + (f"@{self.share}" if self.share else "")
        if self.insert:
            text += "+r" + (f"@{self.insert_share}" if self.insert_share else "")
        return text

    def frozen_letters(self) -> str:
        """Return the letters whose matrices are frozen in this block."""
        return "" if self.trained else self.letters


@dataclass(frozen=True)
class ReservoirPlan:
    """Hold the pattern of block plans, before it is tiled over the blocks of a model."""

    pattern: tuple[BlockPlan, ...]

    def __str__(self) -> str:
        """Return the normal form: `parse(str(plan)) == plan`."""
        parts: list[str] = []
        run = 0
        for i, block in enumerate(self.pattern):
            run += 1
            if i + 1 == len(self.pattern) or self.pattern[i + 1] != block:
                parts.append(str(block) + (f"*{run}" if run > 1 else ""))
                run = 0
        return " ".join(parts)

    def tile(self, num_layers: int) -> tuple[BlockPlan, ...]:
        """Return one block plan per layer: a shorter pattern is tiled, a longer one is cut."""
        return tuple(self.pattern[i % len(self.pattern)] for i in range(num_layers))

    def matrix_key(self, layer: int, letter: str, block: BlockPlan) -> str:
        """Name the matrix `letter` of block `layer`: `c@a` when shared under a, `c.3` when block 3 has its own."""
        share = block.insert_share if letter == RESERVOIR_LETTER else block.share
        return f"{letter}@{share}" if share else f"{letter}.{layer}"


def parse_plan(text: str) -> ReservoirPlan:
    """Parse a plan string.

    A token is `T` (all trained) or the letters of the frozen matrices out of f c g o G U D; then optional `=` (shared
    and trained); then optional `@name`; then optional `+r` or `+r@name` (an inserted reservoir layer); then optional
    `*n` (the token n times).

    Raises:
        ConfigError: names the token and its position.
    """
    tokens = text.split()
    if not tokens:
        raise ConfigError("reservoir.plan", text, "the plan has no token", 'Use "T" for the baseline, e.g. "T cG@a"')
    pattern: list[BlockPlan] = []
    for position, token in enumerate(tokens, start=1):
        block, repeat = _parse_token(text, token, position)
        pattern.extend([block] * repeat)
    if len(pattern) > MAX_BLOCKS:
        raise ConfigError(
            "reservoir.plan", text, f"the pattern has {len(pattern)} blocks", f"Use at most {MAX_BLOCKS}: it is tiled"
        )
    kinds: dict[tuple[str, str], bool] = {}
    for block in pattern:
        for letter in block.letters if block.share else "":
            assert block.share is not None
            if kinds.setdefault((letter, block.share), block.trained) != block.trained:
                raise ConfigError(
                    "reservoir.plan",
                    text,
                    f"matrix {letter}@{block.share} is frozen in one token and trained in another",
                    "Use two sharing names",
                )
    return ReservoirPlan(tuple(pattern))


def _parse_token(text: str, token: str, position: int) -> tuple[BlockPlan, int]:
    def fail(rule: str, remedy: str) -> ConfigError:
        return ConfigError("reservoir.plan", text, f"{rule} in token {position} {token!r}", remedy)

    match = _TOKEN.match(token)
    if match is None:
        bad = next((ch for ch in token if not (ch.isalnum() or ch in "@+*=_")), None)
        what = f"unexpected character {bad!r}" if bad else "cannot read the token"
        raise fail(what, "Write letters, then optional =, @name, +r, *n, e.g. cG@a+r*2")
    letters = match["letters"]
    repeat = int(match["repeat"] or 1)
    if not 1 <= repeat <= MAX_BLOCKS:
        raise fail(f"repeat {repeat} is outside 1..{MAX_BLOCKS}", f"Use *n with n from 1 to {MAX_BLOCKS}")
    if letters == "T":
        if match["share"] or match["trained"]:
            raise fail("T has nothing to share", "Name the matrices to share, e.g. c@a or c=@a")
        letters = ""
    for letter in letters:
        if letter not in LETTERS:
            raise fail(f"unknown matrix letter {letter!r}", f"Letters: {' '.join(LETTERS)}, or T alone")
        if letters.count(letter) > 1:
            raise fail(f"matrix letter {letter!r} stands twice", "Name each matrix once")
    if match["trained"] and not match["share"]:
        raise fail("= marks matrices as shared and trained, but no sharing name follows", "Write e.g. c=@a")
    ordered = "".join(letter for letter in LETTERS if letter in letters)
    block = BlockPlan(ordered, match["share"], bool(match["trained"]), bool(match["insert"]), match["rshare"])
    return block, repeat
