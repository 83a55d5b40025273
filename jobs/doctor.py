"""Find what is wrong before a run does: `python jobs/doctor.py [--config FILE] [--json]`."""

import json
import os
import sys
from dataclasses import asdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the submitted code, not an installed one
os.environ["PYTHONPATH"] = os.pathsep.join([sys.path[0], os.environ.get("PYTHONPATH", "")])  # and on nodes

from rcdist.config.cli import read_config
from rcdist.doctor.examine import examine
from rcdist.errors import EXIT_BAD_CONFIG, EXIT_DONE
from rcdist.exits import run_job

JSON_FLAG = "--json"
PRESETS = Path(__file__).with_name("configs")


def main(argv: list[str]) -> int:
    """Print one line per thing that was looked at, or with --json one object; 2 if anything is wrong."""
    config = read_config(
        [argument for argument in argv if argument != JSON_FLAG],
        "jobs/doctor.py",
        f"Look at all that a run of these settings needs, here and on every node. {JSON_FLAG} prints one object.",
        PRESETS,
    )
    findings = []
    for finding in examine(config):
        findings.append(finding)
        if JSON_FLAG not in argv:
            print(finding, flush=True)
    problems = [finding for finding in findings if finding.remedy is not None]
    if JSON_FLAG in argv:
        print(json.dumps({"problems": len(problems), "findings": [asdict(each) for each in findings]}, indent=1))
    return EXIT_BAD_CONFIG if problems else EXIT_DONE


if __name__ == "__main__":
    run_job(main)
