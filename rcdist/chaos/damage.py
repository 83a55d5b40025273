"""Faults that damage files: the newest checkpoint, all of them, the training tokens."""

import shutil
import time
from collections.abc import Callable
from pathlib import Path

from rcdist.chaos.context import Context
from rcdist.checkpoint.find import find_checkpoints
from rcdist.errors import EXIT_BAD_CONFIG, EXIT_DONE


def _newest_damaged(change: Callable[[Path], None], word: str) -> Callable[[Context], None]:
    def run(context: Context) -> None:
        newest, before, *_ = context.stop_at(12)
        file = shard_of(newest)
        change(file)
        ended = context.job.run()
        context.expect_end(ended, EXIT_DONE, f"skipped: checkpoint={newest}", file.name, word, f"from {before.name}")
        context.judge()

    return run


def _all_damaged(context: Context) -> None:
    context.stop_at(8)
    before: dict[str, bytes] = {}
    while (now := _contents(context.run_dir)) != before:
        before = now
        time.sleep(2)  # the workers of a killed driver end some moments after it
    folders = find_checkpoints(context.run_dir)
    for folder in folders:
        flip_bit(shard_of(folder))
    before = _contents(context.run_dir)
    context.expect_end(context.job.run(), EXIT_BAD_CONFIG, f"all {len(folders)} checkpoints are damaged", "has digest")
    context.verdict.expect(_contents(context.run_dir) == before, "something in the run's folder was changed")


def _tokens_damaged(context: Context) -> None:
    """Flip a bit in the run's own copy of the tokens; then delete them, as the message says."""
    cache = context.job.storage / f"cache-{context.job.name}"
    shutil.copytree(context.corpus.parent, cache)
    context.job.arguments = [*context.job.arguments, f"--data.cache_dir={cache}"]
    corpus = cache / context.corpus.name
    shard = next(iter(sorted(corpus.glob("shard-*.npy"))))
    flip_bit(shard)
    context.expect_end(context.job.run(), EXIT_BAD_CONFIG, shard.name, "has digest", f"Delete {corpus}")
    shutil.rmtree(corpus)
    context.expect_end(context.job.run(), EXIT_DONE)
    context.judge()


def shard_of(folder: Path) -> Path:
    """Return the last rank's optimizer state."""
    return max((folder / "zero").glob("*optim_states.pt"))


def _truncate(file: Path) -> None:
    with file.open("r+b") as handle:
        handle.truncate(file.stat().st_size // 2)


def flip_bit(file: Path) -> None:
    """Flip a bit in the middle of a file."""
    with file.open("r+b") as handle:
        handle.seek(file.stat().st_size // 2)
        byte = handle.read(1)
        handle.seek(-1, 1)
        handle.write(bytes([byte[0] ^ 1]))


def _contents(folder: Path) -> dict[str, bytes]:
    """Return every file of a run; not its lease, which a start takes over from the killed driver and lets go."""
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file() and not path.name.startswith("lease-")]
    return {str(path): path.read_bytes() for path in paths}


DAMAGES = {
    "truncated": (
        "the newest checkpoint has a file cut in half",
        "it is named with both sizes, the one before is used",
        _newest_damaged(_truncate, "its manifest says"),
    ),
    "bit-flip": (
        "the newest checkpoint has one bit flipped",
        "it is named with both digests, the one before is used",
        _newest_damaged(flip_bit, "has digest"),
    ),
    "all-damaged": ("every checkpoint is damaged", "exit code 2, nothing is overwritten", _all_damaged),
    "tokens-damaged": (
        "a file of training tokens has one bit flipped",
        "exit code 2, named with both digests; deleted, it is made again",
        _tokens_damaged,
    ),
}
