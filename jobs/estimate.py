"""Count what a configuration costs without building it: `python jobs/estimate.py --config 370m [--json]`."""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the submitted code, not an installed one

from rcdist.cli import read_config, run_job

JSON_FLAG = "--json"


def main(argv: list[str]) -> int:
    """Print the table of parameters, FLOPs and bytes, or with --json one object."""
    config = read_config(
        [argument for argument in argv if argument != JSON_FLAG],
        "jobs/estimate.py",
        f"Count parameters, FLOPs and bytes of a model. {JSON_FLAG} prints one object instead of the table.",
    )
    from rcdist.estimate import describe_cost, format_cost

    print(json.dumps(describe_cost(config), indent=1) if JSON_FLAG in argv else format_cost(config))
    return 0


if __name__ == "__main__":
    run_job(main)
