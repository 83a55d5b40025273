"""Break training runs on purpose and judge how they end: `python jobs/chaos.py [--faults NAME,...] [--random N]`."""

import contextlib
import os
import shutil
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Annotated

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the submitted code, not an installed one

from pydantic import Field

from rcdist.config import LocalPath, Section
from rcdist.config.cli import parse_cli
from rcdist.errors import EXIT_DONE, EXIT_UNEXPECTED, ConfigError
from rcdist.exits import run_job


class ChaosArguments(Section):
    """Break training runs on purpose, on a cluster on this machine or on your own, and judge how they end."""

    faults: str = "all"
    """Names with commas between, or all; list: print them."""
    random: Annotated[int, Field(ge=1)] | None = None
    """Instead of `faults`: so many runs, each with one or two faults at once that its seed draws, at random moments."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Of the first of the random runs; the next has the next one. `--random 1 --seed S` makes one of them again."""
    repeats: Annotated[int, Field(ge=1)] = 1
    """How often each fault is made."""
    address: str | None = None
    """Address of a Ray cluster to use; None: RAY_ADDRESS, or one on this machine, which faults of nodes need."""
    storage_path: LocalPath | None = None
    """Folder for the runs, seen by every node; None: a temporary one, which is deleted when all is well."""
    settings: str = ""
    """Settings of the runs, as for jobs/pretrain.py, with blanks between; None of the name or the storage."""


def main(argv: list[str]) -> int:
    """Run the faults and print a table; 0 when every run ended as it should, else 1."""
    arguments = parse_cli(ChaosArguments, argv, prog="jobs/chaos.py")
    from rcdist.chaos.faults import FAULTS
    from rcdist.chaos.runner import Runner, format_table, list_faults, local_cluster, run_drawn, run_faults

    if arguments.faults == "list":
        print(list_faults())
        return EXIT_DONE
    names = list(FAULTS) if arguments.faults == "all" else arguments.faults.split(",")
    names = list(dict.fromkeys(names))
    unknown = [name for name in names if name not in FAULTS]
    if unknown:
        raise ConfigError("faults", unknown[0], f"not one of {', '.join(FAULTS)}", "--faults=list explains them")
    with contextlib.ExitStack() as stack:
        # Kept when a run did not end as it should, to be looked at.
        folder = arguments.storage_path or tempfile.mkdtemp(prefix="rcdist-chaos-")
        storage = Path(folder).expanduser().resolve()
        print(f"runs are below {storage}", flush=True)
        address = arguments.address or os.environ.get("RAY_ADDRESS")
        if address:
            os.environ["RAY_ADDRESS"] = address  # for the jobs
        cluster = None if address else stack.enter_context(local_cluster())
        script = Path(__file__).with_name("pretrain.py")
        runner = Runner(script, storage, arguments.settings.split(), cluster, is_local=not address)
        report = partial(print, flush=True)
        if arguments.random is None:
            verdicts = run_faults(runner, names, arguments.repeats, report)
            print(format_table(verdicts))
        else:
            verdicts = run_drawn(runner, arguments.random, arguments.seed, report)
            passed = sum(not verdict.failures for verdict in verdicts)
            print(f"{passed} of {len(verdicts)} runs ended as they should")
    if any(verdict.failures for verdict in verdicts):
        return EXIT_UNEXPECTED
    if arguments.storage_path is None:
        shutil.rmtree(storage)
    return EXIT_DONE


if __name__ == "__main__":
    run_job(main)
