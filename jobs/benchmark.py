"""Measure what freezing and fusing are worth here, in interleaved pairs: `python jobs/benchmark.py deltas`."""

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the submitted code, not an installed one
os.environ["PYTHONPATH"] = os.pathsep.join([sys.path[0], os.environ.get("PYTHONPATH", "")])

import torch
import yaml
from pydantic import ValidationError

from rcdist.benchmark.operations import measure_frozen, measure_scan
from rcdist.benchmark.overhead import measure_data, measure_overhead
from rcdist.benchmark.pairs import describe_device
from rcdist.benchmark.steps import measure_deltas, measure_step
from rcdist.benchmark.traffic import measure_traffic
from rcdist.config import ModelConfig, ReservoirConfig
from rcdist.config_errors import to_config_error
from rcdist.errors import EXIT_BAD_CONFIG, RcdistError
from rcdist.ops.host import prepare_host


def parse(argv: list[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="jobs/benchmark.py", description=__doc__)
    parser.add_argument("kind", choices=["frozen", "step", "deltas", "scan", "overhead", "data", "bytes"])
    parser.add_argument("--pairs", type=int, default=7, help="interleaved pairs")
    parser.add_argument("--json", action="store_true", help="print one object")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--width", type=int, help="d; frozen and scan 1024, else 512")
    parser.add_argument("--tokens", type=int, default=2048, help="tokens of frozen; of scan 16 times as many")
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--glu-width", type=int, default=1536)
    parser.add_argument("--vocab-size", type=int, default=4096)
    parser.add_argument("--seq-len", type=int, default=512)
    parser.add_argument("--batch", type=int, default=4, help="windows")
    parser.add_argument("--plan", default="cG@a", help="plan of deltas")
    parser.add_argument("--topology", default="hadamard", help="of its matrices, or a map '{c: dense, G: hadamard}'")
    parser.add_argument("--workers", type=int, default=1, help="of overhead and data; leave a core to Ray")
    parser.add_argument("--others", default="port,llama", help="what step compares with")
    return parser.parse_args(argv)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Run one kind of measurement."""
    device = torch.device(options.device)
    if options.kind == "frozen":
        return measure_frozen(options.width or 1024, options.tokens, options.pairs, device)
    if options.kind == "overhead":
        return measure_overhead(options.pairs, options.workers, device)
    if options.kind == "data":
        return measure_data(options.pairs, options.workers)
    if options.kind == "scan":
        lengths = [512, 1024, 4096] + ([32768] if device.type == "cuda" else [])
        return measure_scan(options.width or 1024, 16 * options.tokens, lengths, options.pairs, device)
    model = ModelConfig(
        num_layers=options.layers,
        width=options.width or 512,
        glu_width=options.glu_width,
        vocab_size=options.vocab_size,
    )
    shape = (options.batch, options.seq_len, options.pairs, device)
    if options.kind == "bytes":
        return measure_traffic(model, options.batch, options.seq_len, read_plan(options))
    if options.kind == "step":
        return measure_step(model, *shape, others=tuple(filter(None, options.others.split(","))))
    return measure_deltas(model, read_plan(options), *shape)


def read_plan(options: argparse.Namespace) -> ReservoirConfig:
    """Return the plan that is compared with T."""
    chosen = {"plan": options.plan, "topology": yaml.safe_load(options.topology)}
    try:
        return ReservoirConfig(**chosen)
    except ValidationError as error:
        raise to_config_error(error, ReservoirConfig, chosen, "the command line") from None


def flatten(found: dict[str, Any], name: str = "") -> list[tuple[str, Any]]:
    """Return dotted names and values, the numbers of a ratio on one line."""
    if "median" in found:
        return [(name, "{median:.3f}  [{low:.3f}, {high:.3f}]".format(**found))]
    rows: list[tuple[str, Any]] = []
    for key, value in found.items():
        path = f"{name}.{key}" if name else key
        rows += flatten(value, path) if isinstance(value, dict) else [(path, value)]
    return rows


def main(argv: list[str]) -> int:
    """Print a table, or with --json one object; the interval is 95 % of the median, by bootstrap over pairs."""
    options = parse(argv)
    prepare_host(options.threads)
    try:
        found = measure(options) | describe_device(torch.device(options.device)) | {"pairs": options.pairs}
    except RcdistError as error:
        print(error, file=sys.stderr)
        return EXIT_BAD_CONFIG
    if options.json:
        print(json.dumps(found, indent=1))
    else:
        for name, value in flatten(found):
            print(f"{name:34} {value:.4g}" if isinstance(value, float) else f"{name:34} {value}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
