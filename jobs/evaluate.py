"""Measure a checkpoint on any text: `python jobs/evaluate.py --checkpoint RUN --text FILE [--text FILE ...]`."""

import json
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the submitted code, not an installed one
os.environ["PYTHONPATH"] = os.pathsep.join([sys.path[0], os.environ.get("PYTHONPATH", "")])  # and in workers

from rcdist.config.cli import parse_cli
from rcdist.evaluate import EvaluateArguments, evaluate
from rcdist.exits import run_job

JSON_FLAG = "--json"


def main(argv: list[str]) -> int:
    """Print one row per text, task and file of pairs; with --json one object."""
    as_json = JSON_FLAG in argv
    arguments = parse_cli(EvaluateArguments, [a for a in argv if a != JSON_FLAG], prog="jobs/evaluate.py")
    found = evaluate(arguments, lambda line: None if as_json else print(line, flush=True))
    if as_json:
        print(json.dumps(found, indent=1))
    return 0


if __name__ == "__main__":
    run_job(main)
