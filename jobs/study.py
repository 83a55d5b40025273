"""Train, time, load or print a study: `python jobs/study.py train|time|load|table --config NAME [--KEY VALUE ...]`."""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the submitted code, not an installed one
os.environ["PYTHONPATH"] = os.pathsep.join([sys.path[0], os.environ.get("PYTHONPATH", "")])  # and in its processes

from rcdist.config.cli import parse_cli
from rcdist.errors import ConfigError
from rcdist.exits import run_job
from rcdist.storage import say
from rcdist.study.settings import StudyConfig

PRESETS = Path(__file__).with_name("configs") / "paper"
RESULTS = Path(__file__).resolve().parents[1] / "rcdist" / "study" / "results"
VERBS = ("train", "time", "load", "table")
WITHOUT = ("train", "time", "table")


def main(argv: list[str]) -> int:
    """Do what is asked, in this order; --out FOLDER: tables are written there too, as CSV and pictures.

    load: give MLflow the runs of such tables, of --from FOLDER or our own ones.
    """
    count = next((i for i, argument in enumerate(argv) if argument.startswith("-")), len(argv))
    verbs, argv = argv[:count] or list(WITHOUT), argv[count:]
    wrong = next((verb for verb in verbs if verb not in VERBS), None)
    if wrong is not None:
        raise ConfigError("verb", wrong, f"is none of {', '.join(VERBS)}", "Write e.g. jobs/study.py table --config X")
    out, argv = _take_folder(argv, "out")
    source, argv = _take_folder(argv, "from")
    text = "Train arms with paired seeds, time them in pairs, and print the tables that MLflow has of them."
    config = parse_cli(StudyConfig, argv, prog="jobs/study.py", description=text, presets=PRESETS)
    from rcdist.printing import printed_log  # after the settings are known to be right: they import torch and Ray
    from rcdist.study import driver, loading, pictures, results, tables

    with printed_log():
        if "train" in verbs:
            driver.train_study(config, say)
        if "time" in verbs:
            driver.time_study(config, say)
        if "load" in verbs:
            loading.load_study(config, source or RESULTS, say)
    if "table" in verbs:
        result = results.read_study(config)
        print(tables.format_tables(result))
        if out is not None:
            try:
                files = [*tables.write_tables(result, out), *pictures.draw_pictures(result, out)]
            except OSError as error:
                rule = f"cannot be written ({error.strerror})"
                raise ConfigError("out", str(out), rule, "Choose a folder you may write") from error
            print("\n".join(map(str, files)))
    return 0


def _take_folder(argv: list[str], option: str) -> tuple[Path | None, list[str]]:
    """Take --out FOLDER or --from FOLDER out of the arguments: they are no settings of a study."""
    for i, argument in enumerate(argv):
        name, _, value = argument.partition("=")
        if name == f"--{option}":
            value, rest = (value, argv[i + 1 :]) if value else ("".join(argv[i + 1 : i + 2]), argv[i + 2 :])
            if not value:
                raise ConfigError(option, "", "needs a folder", f"Write e.g. --{option} results")
            return Path(value).expanduser(), argv[:i] + rest
    return None, argv


if __name__ == "__main__":
    run_job(main)
