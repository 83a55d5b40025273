"""Serve a trained model over HTTP, as OpenAI's completions: `python jobs/serve.py --model FOLDER [--port N]`."""

import os
import sys
from pathlib import Path
from typing import Annotated, Literal

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the submitted code, not an installed one
os.environ["PYTHONPATH"] = os.pathsep.join([sys.path[0], os.environ.get("PYTHONPATH", "")])  # and in replicas

from pydantic import Field

from rcdist.config import LocalPath, Section
from rcdist.config.cli import parse_cli
from rcdist.exits import run_job

KEY_VARIABLE = "RCDIST_API_KEY"


class ServeArguments(Section):
    """Serve a model: /v1/completions, /v1/models, /health, /metrics. If RCDIST_API_KEY is set, /v1 wants that key."""

    model: LocalPath = "~/rcdist/runs/tiny"
    """A packed folder of jobs/export.py, or a run's folder (its newest checkpoint is used), or a step-... folder."""
    name: Annotated[str, Field(min_length=1)] | None = None
    """Of the model, in requests; None: the run's."""
    host: str = "127.0.0.1"
    """Address to listen on; other than loopback only with an API key."""
    port: Annotated[int, Field(ge=1, le=65535)] = 8000
    """Port to listen on."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute; auto: on GPUs if there are any."""
    num_replicas: Annotated[int, Field(ge=1)] = 1
    """Copies of the model, each with a GPU, or with `threads` CPUs."""
    threads: Annotated[int, Field(ge=1)] | None = None
    """Of a replica on a CPU; None: this machine's cores, divided by the replicas."""
    max_running: Annotated[int, Field(ge=1, le=4096)] = 32
    """Texts that a replica continues at a time."""
    max_waiting: Annotated[int, Field(ge=0)] = 256
    """Texts that wait for it; more are refused (429)."""
    max_prompt_tokens: Annotated[int, Field(ge=1)] = 32_768
    """Of one prompt."""
    max_tokens: Annotated[int, Field(ge=1)] = 4_096
    """Made for one text at most."""
    max_body_bytes: Annotated[int, Field(ge=1024)] = 1_048_576
    """Of one request."""


def main(argv: list[str]) -> int:
    """Start the server, say where it is, and serve until SIGTERM or Ctrl-C."""
    arguments = parse_cli(ServeArguments, argv, prog="jobs/serve.py")
    from rcdist.serve.limits import Limits
    from rcdist.serve.server import run_server

    limits = Limits(
        prompt_tokens=arguments.max_prompt_tokens,
        max_tokens=arguments.max_tokens,
        body_bytes=arguments.max_body_bytes,
        running=arguments.max_running,
        waiting=arguments.max_waiting,
    )
    run_server(
        Path(arguments.model).expanduser(),
        name=arguments.name,
        host=arguments.host,
        port=arguments.port,
        device=arguments.device,
        num_replicas=arguments.num_replicas,
        threads=arguments.threads,
        limits=limits,
        api_key=os.environ.get(KEY_VARIABLE) or None,
    )
    return 0


if __name__ == "__main__":
    run_job(main)
