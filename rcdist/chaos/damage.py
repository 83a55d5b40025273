"""Faults that damage files: the newest checkpoint, all of them, the training tokens."""

import shutil
import time
from collections.abc import Callable
from pathlib import Path

from rcdist.chaos.scene import Scene
from rcdist.errors import EXIT_BAD_CONFIG, EXIT_DONE
from rcdist.train.checkpoint import find_checkpoints


def _newest_damaged(change: Callable[[Path], None], word: str) -> Callable[[Scene], None]:
    def run(scene: Scene) -> None:
        newest, before, *_ = scene.stop_at(12)
        file = _shard(newest)
        change(file)
        ended = scene.stage.run()
        scene.expect_end(ended, EXIT_DONE, f"skipped: checkpoint={newest}", file.name, word, f"from {before.name}")
        scene.judge()

    return run


def _all_damaged(scene: Scene) -> None:
    scene.stop_at(8)
    before: dict[str, bytes] = {}
    while (now := _contents(scene.run_dir)) != before:
        before = now
        time.sleep(2)  # the workers of a killed driver end some moments after it
    folders = find_checkpoints(scene.run_dir)
    for folder in folders:
        _flip_bit(_shard(folder))
    before = _contents(scene.run_dir)
    scene.expect_end(scene.stage.run(), EXIT_BAD_CONFIG, f"all {len(folders)} checkpoints are damaged", "has digest")
    scene.verdict.expect(_contents(scene.run_dir) == before, "something in the run's folder was changed")


def _tokens_damaged(scene: Scene) -> None:
    """Flip a bit in the run's own copy of the tokens; then delete them, as the message says."""
    cache = scene.stage.storage / f"cache-{scene.stage.name}"
    shutil.copytree(scene.corpus.parent, cache)
    scene.stage.arguments = [*scene.stage.arguments, f"--data.cache_dir={cache}"]
    corpus = cache / scene.corpus.name
    shard = next(iter(sorted(corpus.glob("*.tokens"))))
    _flip_bit(shard)
    scene.expect_end(scene.stage.run(), EXIT_BAD_CONFIG, shard.name, "has digest", f"Delete {corpus}")
    shutil.rmtree(corpus)
    scene.expect_end(scene.stage.run(), EXIT_DONE)
    scene.judge()


def _shard(folder: Path) -> Path:
    """Return the last rank's optimizer state."""
    return max((folder / "zero").glob("*optim_states.pt"))


def _truncate(file: Path) -> None:
    with file.open("r+b") as handle:
        handle.truncate(file.stat().st_size // 2)


def _flip_bit(file: Path) -> None:
    with file.open("r+b") as handle:
        handle.seek(file.stat().st_size // 2)
        byte = handle.read(1)
        handle.seek(-1, 1)
        handle.write(bytes([byte[0] ^ 1]))


def _contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


DAMAGES = {
    "truncated": (
        "the newest checkpoint has a file cut in half",
        "it is named with both sizes, the one before is used",
        _newest_damaged(_truncate, "its manifest says"),
    ),
    "bit-flip": (
        "the newest checkpoint has one bit flipped",
        "it is named with both digests, the one before is used",
        _newest_damaged(_flip_bit, "has digest"),
    ),
    "all-damaged": ("every checkpoint is damaged", "exit code 2, nothing is overwritten", _all_damaged),
    "tokens-damaged": (
        "a file of training tokens has one bit flipped",
        "exit code 2, named with both digests; deleted, it is made again",
        _tokens_damaged,
    ),
}
