"""Continue a prompt with a trained checkpoint: `python jobs/generate.py --checkpoint RUN --prompt "..."`."""

import sys
from pathlib import Path
from typing import Annotated, Any, Literal

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the submitted code, not an installed one

from pydantic import Field

from rcdist.config import LocalPath, Section
from rcdist.config.cli import parse_cli
from rcdist.exits import run_job


class GenerateArguments(Section):
    """Continue a prompt in words."""

    checkpoint: LocalPath = "~/rcdist/runs/tiny"
    """A run's folder (its newest checkpoint is used), a step-... folder, or a folder of jobs/export.py."""
    prompt: str = "It was a truth"
    """Text to continue."""
    max_tokens: Annotated[int, Field(ge=1)] = 100
    """Most tokens to write."""
    temperature: Annotated[float, Field(ge=0, le=10)] = 0.8
    """0: always the most likely token; higher: more varied."""
    top_k: Annotated[int, Field(ge=1)] | None = 50
    """Sample among the k most likely tokens; None: among all."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """And among the most likely ones that have this probability together."""
    stop: list[Annotated[str, Field(min_length=1)]] = []
    """Strings of which any ends the text; it is not written."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Seed of the sampling."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute; auto: on a GPU if there is one."""


def main(argv: list[str]) -> int:
    """Print the prompt and its continuation as it is made."""
    arguments = parse_cli(GenerateArguments, argv, prog="jobs/generate.py")
    from rcdist.inference.from_huggingface import is_huggingface, load_huggingface
    from rcdist.inference.generate import Sampling, generate_text
    from rcdist.inference.load import choose_device, load_model

    folder, device = Path(arguments.checkpoint).expanduser(), choose_device(arguments.device)
    model: Any
    if is_huggingface(folder):
        model, tokenizer = load_huggingface(folder, device)
    else:
        loaded = load_model(folder, device)
        model, tokenizer = loaded.model, loaded.tokenizer
    sampling = Sampling(arguments.temperature, arguments.top_k, arguments.top_p, arguments.seed)
    print(arguments.prompt, end="", flush=True)
    pieces = generate_text(
        model,
        tokenizer,
        arguments.prompt,
        max_tokens=arguments.max_tokens,
        sampling=sampling,
        stops=arguments.stop,
    )
    for piece in pieces:
        print(piece, end="", flush=True)
    print()
    return 0


if __name__ == "__main__":
    run_job(main)
