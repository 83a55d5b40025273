"""Count what a configuration costs without building it: `python jobs/estimate.py --config 370m [--json]`."""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the submitted code, not an installed one

from rcdist.config.cli import read_config
from rcdist.exits import run_job

PRESETS = Path(__file__).with_name("configs")
JSON_FLAG = "--json"


def main(argv: list[str]) -> int:
    """Print the table of parameters, FLOPs and bytes, and what a run takes; or with --json one object."""
    config = read_config(
        [argument for argument in argv if argument != JSON_FLAG],
        "jobs/estimate.py",
        f"Count parameters, FLOPs, bytes, memory, time and money. {JSON_FLAG} prints one object instead of the table.",
        PRESETS,
    )
    from rcdist.cluster import planned_workers
    from rcdist.estimate import describe_cost, describe_run, format_cost, format_run
    from rcdist.tracking.prices import resolve_price

    workers = planned_workers(config)
    price = resolve_price(config.cost, "GPU" if workers.use_gpu else None, config.cluster.cpus_per_worker)
    if JSON_FLAG in argv:
        print(json.dumps(describe_cost(config) | {"run": describe_run(config, workers, price)}, indent=1))
    else:
        print(format_cost(config), format_run(config, workers, price), sep="\n\n")
    return 0


if __name__ == "__main__":
    run_job(main)
