"""Measure what freezing and fusing are worth here, in interleaved pairs: `python jobs/benchmark.py deltas`."""

import json
import os
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the submitted code, not an installed one
os.environ["PYTHONPATH"] = os.pathsep.join([sys.path[0], os.environ.get("PYTHONPATH", "")])

from rcdist.benchmark.settings import BenchmarkArguments
from rcdist.config import ModelConfig, ReservoirConfig
from rcdist.config.cli import config_from_dict, parse_cli
from rcdist.errors import ConfigError
from rcdist.exits import run_job

JSON_FLAG = "--json"


def measure(arguments: BenchmarkArguments) -> dict[str, Any]:
    """Run one kind of measurement."""
    import torch

    from rcdist.benchmark import decoding, kernels, operations, overhead, pairs, scaling, searches, steps, traffic
    from rcdist.ops.host import prepare_host

    prepare_host(arguments.threads or os.cpu_count())
    device = torch.device(arguments.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if arguments.kind == "kernels" and device.type != "cuda":
        raise ConfigError("kind", "kernels", "measures kernels of a GPU, and there is none", "Run it on a GPU")
    script, count = Path(__file__).with_name("pretrain.py"), arguments.pairs
    model = ModelConfig(
        num_layers=arguments.layers,
        width=arguments.width or 512,
        glu_width=arguments.glu_width,
        vocab_size=arguments.vocab_size,
    )
    plan = config_from_dict(
        {"plan": arguments.plan, "topology": arguments.topology}, ReservoirConfig, "on the command line"
    )
    shape = (arguments.batch, arguments.seq_len)
    wide = arguments.width or 1024
    lengths = [512, 1024, 4096] + ([32768] if device.type == "cuda" else [])
    kinds = {
        "frozen": lambda: operations.measure_frozen(wide, arguments.tokens, count, device),
        "scan": lambda: operations.measure_scan(wide, 16 * arguments.tokens, lengths, count, device),
        "step": lambda: steps.measure_step(model, *shape, count, device, others=tuple(arguments.others)),
        "deltas": lambda: steps.measure_deltas(model, plan, *shape, count, device),
        "bytes": lambda: traffic.measure_traffic(model, *shape, plan),
        "overhead": lambda: overhead.measure_overhead(script, count, arguments.workers, device),
        "scaling": lambda: scaling.measure_scaling(
            script,
            arguments.preset,
            arguments.numbers,
            arguments.stages,
            arguments.batch,
            arguments.micro_batch or arguments.batch,
            device,
        ),
        "search": lambda: searches.measure_search(script.with_name("sweep.py"), count),
        "kernels": kernels.measure_kernels,
        "decode": lambda: decoding.measure_decode(
            model, plan, *shape, arguments.decoded, count, device, tuple(arguments.others)
        ),
        "serve": lambda: _measure_serving(
            script.with_name("serve.py"), model, plan, arguments.clients, arguments.decoded, count, arguments.seconds
        ),
    }
    return kinds[arguments.kind]() | pairs.describe_device(device) | {"pairs": count}


def _measure_serving(*arguments: Any) -> dict[str, Any]:
    from rcdist.benchmark.serving import measure_serving  # the rest works without Ray Serve

    return measure_serving(*arguments)


def main(argv: list[str]) -> int:
    """Print a table, or with --json one object; the interval is 95 % of the median, by bootstrap over pairs."""
    given = [argument for argument in argv if argument != JSON_FLAG]
    if given and not given[0].startswith("-"):
        given[0] = f"--kind={given[0]}"
    from rcdist.benchmark.pairs import format_table

    found = measure(parse_cli(BenchmarkArguments, given, prog="jobs/benchmark.py"))
    if JSON_FLAG in argv:
        print(json.dumps(found, indent=1))
        return 0
    print(format_table(found))
    return 0


if __name__ == "__main__":
    run_job(main)
