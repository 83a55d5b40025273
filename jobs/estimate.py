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
    """Print parameters, FLOPs, bytes, memory, speed, time and money; with --json one object; exit code 3: no room."""
    config = read_config(
        [argument for argument in argv if argument != JSON_FLAG],
        "jobs/estimate.py",
        f"Count parameters, FLOPs, bytes, memory, time and money. {JSON_FLAG} prints one object instead of the table.",
        PRESETS,
    )
    from rcdist.cluster import planned_workers
    from rcdist.estimate.cost import describe_cost, format_cost
    from rcdist.estimate.run import check_fits, describe_run, format_forecast, format_run
    from rcdist.tracking.prices import resolve_price
    from rcdist.train.deepspeed_config import check_raw_keys

    check_raw_keys(config)
    workers = planned_workers(config)
    price = resolve_price(config.cost, "GPU" if workers.use_gpu else None, config.cluster.cpus_per_worker)
    if price.is_gpu and config.cluster.use_gpu is None:  # the node type says what the workers have
        config = config.model_copy(update={"cluster": config.cluster.model_copy(update={"use_gpu": True})})
        workers = planned_workers(config)
    if JSON_FLAG in argv:
        run = describe_run(config, workers, price)
        print(json.dumps(describe_cost(config) | run | {"run": run}, indent=1))
    else:
        texts = (format_cost(config), format_run(config, workers, price), format_forecast(config, workers, price))
        print(*texts, sep="\n\n")
    if config.cost.node_type != "auto":
        check_fits(config, workers, price)
    return 0


if __name__ == "__main__":
    run_job(main)
