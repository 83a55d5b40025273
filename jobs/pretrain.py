"""Pre-train a model: `python jobs/pretrain.py [--config FILE] [--section.key VALUE ...]`; --help lists every key."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the submitted code, not an installed one

from rcdist.config.cli import read_config
from rcdist.exits import run_job

PRESETS = Path(__file__).with_name("configs")


def main(argv: list[str]) -> int:
    """Train, evaluate and record one run."""
    config = read_config(argv, "jobs/pretrain.py", "Pre-train a reservoir MatMul-free language model.", PRESETS)
    from rcdist.launch import launch  # after the settings are known to be right: it imports torch and Ray

    return launch(config)


if __name__ == "__main__":
    run_job(main)
