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
    """A run's folder (its newest checkpoint is used), a step-... folder; for import a folder of a public model."""
    out: LocalPath
    """Folder to write; must not exist, or be empty."""
    format: Literal["packed", "hf", "import"] = "packed"
    """packed: two bits a weight, for our jobs; hf: what transformers loads without rcdist; import: packed, of a
    public model in the layout of HGRNBit."""
    log_model: bool = False
    """Log the packed folder as an MLflow model of the run, too."""


def main(argv: list[str]) -> int:
    """Write the folder and print what it holds."""
    arguments = parse_cli(ExportArguments, argv, prog="jobs/export.py")
    import torch

    from rcdist.inference.export import check_can_log, export_model, log_exported
    from rcdist.inference.load import load_model

    source, out = Path(arguments.checkpoint).expanduser(), Path(arguments.out).expanduser()
    if arguments.format == "import":
        from rcdist.inference.importing import import_public

        print(import_public(source, out))
        return 0
    loaded = load_model(source, torch.device("cpu"))
    if arguments.log_model:
        check_can_log(loaded, arguments.format)
    print(export_model(loaded, out, arguments.format))
    if arguments.log_model:
        print(log_exported(loaded, out))
    return 0


if __name__ == "__main__":
    run_job(main)
