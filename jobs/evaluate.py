"""Measure a checkpoint on any text: `python jobs/evaluate.py --checkpoint RUN --text FILE [--text FILE ...]`."""

import json
import sys
from pathlib import Path
from typing import Annotated, Literal

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the submitted code, not an installed one

from pydantic import Field

from rcdist.config import DEFAULT_CORPUS, LocalPath, Section
from rcdist.config.cli import parse_cli
from rcdist.exits import run_job

JSON_FLAG = "--json"


class EvaluateArguments(Section):
    """Measure loss, perplexity and bits per byte of a model; --json prints one object instead of rows."""

    checkpoint: LocalPath = "~/rcdist/runs/tiny"
    """A run's folder (its newest checkpoint is used), a step-... folder, or a packed folder of jobs/export.py."""
    text: list[LocalPath] = [DEFAULT_CORPUS]
    """Files (.txt .jsonl .parquet), globs or folders; `austen`: the held-out novel that ships with the package."""
    text_column: str = "text"
    """Column of .jsonl and .parquet files that holds the text."""
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    """Target tokens per entry of `text`; None: all."""
    blimp: LocalPath | None = None
    """Parquet file of minimal pairs (sentence_good, sentence_bad, uid), as BLiMP; None: none."""
    max_pairs: Annotated[int, Field(ge=1)] | None = None
    """Pairs of each uid; None: all."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute; auto: on a GPU if there is one."""


def format_scores(result: dict[str, float]) -> str:
    """Return one row of the table."""
    return (
        f"{result['eval/bits_per_byte']:.4f} bits/byte, {result['eval/loss_nats']:.4f} nats/token, "
        f"perplexity {result['eval/perplexity']:.2f}, {int(result['tokens'])} tokens"
    )


def main(argv: list[str]) -> int:
    """Print one row per entry of `text`, then the accuracy on minimal pairs; with --json one object."""
    as_json = JSON_FLAG in argv
    arguments = parse_cli(EvaluateArguments, [a for a in argv if a != JSON_FLAG], prog="jobs/evaluate.py")
    from rcdist.cluster import ray_session
    from rcdist.inference.likelihood import measure_pairs
    from rcdist.inference.load import choose_device, load_model
    from rcdist.inference.score import score_text

    loaded = load_model(Path(arguments.checkpoint).expanduser(), choose_device(arguments.device))
    about = {"name": loaded.config.name, "step": loaded.step, "plan": loaded.config.reservoir.plan}
    if not as_json:
        print("{name} at step {step}, plan {plan}".format(**about))
    results: dict[str, dict[str, float]] = {}
    with ray_session(loaded.config):
        for entry in arguments.text:
            results[entry] = result = score_text(
                loaded, [entry], text_column=arguments.text_column, max_tokens=arguments.max_tokens
            )
            if not as_json:
                print(f"{entry}: {format_scores(result)}", flush=True)
    pairs = None
    if arguments.blimp is not None:
        pairs = measure_pairs(loaded, Path(arguments.blimp).expanduser(), arguments.max_pairs)
        if not as_json:
            print(f"{arguments.blimp}: {pairs['accuracy']:.4f} of {int(pairs['pairs'])} minimal pairs")
    if as_json:
        print(json.dumps(about | {"texts": results, "blimp": pairs}, indent=1))
    return 0


if __name__ == "__main__":
    run_job(main)
