"""Measure a checkpoint on any text: `python jobs/evaluate.py --checkpoint RUN --text FILE [--text FILE ...]`."""

import sys
from pathlib import Path
from typing import Annotated, Literal

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the submitted code, not an installed one

from pydantic import Field

from rcdist.config import DEFAULT_CORPUS, LocalPath, Section
from rcdist.config.cli import parse_cli
from rcdist.exits import run_job


class EvaluateArguments(Section):
    """Measure loss, perplexity and bits per byte of a checkpoint."""

    checkpoint: LocalPath = "~/rcdist/runs/tiny"
    """A run's folder (its newest checkpoint is used) or a step-... folder."""
    text: list[LocalPath] = [DEFAULT_CORPUS]
    """Files (.txt .jsonl .parquet), globs or folders; `austen`: the held-out novel that ships with the package."""
    text_column: str = "text"
    """Column of .jsonl and .parquet files that holds the text."""
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    """Target tokens per entry of `text`; None: all."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute; auto: on a GPU if there is one."""


def main(argv: list[str]) -> int:
    """Print one row per entry of `text`."""
    arguments = parse_cli(EvaluateArguments, argv, prog="jobs/evaluate.py")
    from rcdist.cluster import ray_session
    from rcdist.inference.load import choose_device, load_model
    from rcdist.inference.score import score_text

    loaded = load_model(Path(arguments.checkpoint).expanduser(), choose_device(arguments.device))
    print(f"{loaded.config.name} at step {loaded.manifest.step}, plan {loaded.config.reservoir.plan}")
    for entry in arguments.text:
        with ray_session(loaded.config):
            result = score_text(loaded, [entry], text_column=arguments.text_column, max_tokens=arguments.max_tokens)
        print(
            f"{entry}: {result['eval/bits_per_byte']:.4f} bits/byte, {result['eval/loss_nats']:.4f} nats/token, "
            f"perplexity {result['eval/perplexity']:.2f}, {int(result['tokens'])} tokens"
        )
    return 0


if __name__ == "__main__":
    run_job(main)
