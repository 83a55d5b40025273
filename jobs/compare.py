"""Compare runs and searches: `python jobs/compare.py NAME [NAME ...] [--out FOLDER] [--json]`."""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the submitted code, not an installed one

from pydantic import Field

from rcdist.config import JobConfig, LocalPath, Section
from rcdist.config.cli import parse_cli
from rcdist.config.job import TrackingConfig
from rcdist.errors import ConfigError
from rcdist.exits import run_job
from rcdist.storage import say, write_file

JSON_FLAG = "--json"


class CompareArguments(Section):
    """Compare runs and searches by their names in MLflow, which may stand first; --json prints one object instead.

    Runs that differ in their seeds only are taken together and paired by seed with the baseline, plan T.
    """

    names: list[str] = Field(default=[], description="Names of runs; of a search, all its trials are compared.")
    out: LocalPath | None = None
    """Folder into which comparison.html is written; None: only the table is printed."""
    storage_path: LocalPath = "~/rcdist"
    """Folder of the runs, whose mlflow.db is read unless tracking.uri says otherwise."""
    tracking: TrackingConfig = TrackingConfig()


def main(argv: list[str]) -> int:
    """Print a table, and write the page."""
    given = [argument for argument in argv if argument != JSON_FLAG]
    first = next((i for i, argument in enumerate(given) if argument.startswith("-")), len(given))
    given = [f"--names={name}" for name in given[:first]] + given[first:]
    arguments = parse_cli(CompareArguments, given, prog="jobs/compare.py")
    if not arguments.names:
        raise ConfigError(
            "names", "", "nothing to compare", "Give names of runs or searches, e.g. jobs/compare.py sweep"
        )
    from rcdist import compare

    run = JobConfig(storage_path=arguments.storage_path, tracking=arguments.tracking)
    timeout_s = arguments.tracking.timeout_s
    runs = compare.read(run.tracking_uri, arguments.tracking.experiment, arguments.names, timeout_s)
    print(json.dumps(compare.describe(runs), indent=1) if JSON_FLAG in argv else compare.format_table(runs))
    if arguments.out is not None:
        folder = Path(arguments.out).expanduser()
        page = folder / "comparison.html"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            write_file(page, compare.build_report(f"Comparison of {', '.join(arguments.names)}", runs), durably=False)
        except OSError as error:
            rule = f"cannot be written ({error.strerror})"
            raise ConfigError("out", arguments.out, rule, "Choose a folder you may write") from error
        if JSON_FLAG not in argv:
            say(str(page))
    return 0


if __name__ == "__main__":
    run_job(main)
