"""Search for the best reservoir for a cost: `python jobs/sweep.py [--config FILE] [--sweep.KEY VALUE ...]`."""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the submitted code, not an installed one
os.environ["PYTHONPATH"] = os.pathsep.join([sys.path[0], os.environ.get("PYTHONPATH", "")])  # and in trials

from rcdist.config.cli import parse_cli
from rcdist.exits import run_job
from rcdist.sweep.settings import SweepConfig

PRESETS = Path(__file__).with_name("configs") / "sweeps"
DEFAULT = "tiny"


def main(argv: list[str]) -> int:
    """Search, write the front and its pictures, and record every trial."""
    if not any(argument.split("=")[0] == "--config" for argument in argv):
        argv = ["--config", DEFAULT, *argv]
    text = "Search for the plans and reservoirs with the most quality for a cost; every key of a run is a fixed part."
    config = parse_cli(SweepConfig, argv, prog="jobs/sweep.py", description=text, presets=PRESETS)
    from rcdist.sweep.driver import launch_sweep  # after the settings are known to be right: it imports torch and Ray

    return launch_sweep(config)


if __name__ == "__main__":
    run_job(main)
