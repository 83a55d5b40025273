"""Make a trained checkpoint a model to use: `python jobs/export.py --checkpoint RUN --out FOLDER --format packed`."""

import sys
from pathlib import Path
from typing import Literal

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the submitted code, not an installed one

from rcdist.config import LocalPath, Section
from rcdist.config.cli import parse_cli
from rcdist.exits import run_job


class ExportArguments(Section):
    """Write a trained model into a folder that needs no training state."""

    checkpoint: LocalPath = "~/rcdist/runs/tiny"
    """A run's folder (its newest checkpoint is used) or a step-... folder."""
    out: LocalPath
    """Folder to write; must not exist, or be empty."""
    format: Literal["packed", "hf"] = "packed"
    """packed: two bits a weight, for jobs/generate.py, jobs/evaluate.py; hf: what transformers loads without rcdist."""


def main(argv: list[str]) -> int:
    """Write the folder and print what it holds."""
    arguments = parse_cli(ExportArguments, argv, prog="jobs/export.py")
    import torch

    from rcdist.inference.export import export_model
    from rcdist.inference.load import load_model

    out = Path(arguments.out).expanduser()
    loaded = load_model(Path(arguments.checkpoint).expanduser(), torch.device("cpu"))
    print(export_model(loaded, out, arguments.format))
    return 0


if __name__ == "__main__":
    run_job(main)
