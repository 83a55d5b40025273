"""The repository keeps its own rules: linters, types, import directions, file sizes, and a README that is true."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

MAX_LINES = 300
MAX_LINES_KERNEL = 350
MAX_LINES_JOB = 120
FOREIGN_PATH = re.compile(r"(?<![\w.~}])/(?:home|root|Users|work|workspace)/\w\w")
"""An absolute path of somebody's machine; one letter after the slash is an example."""


def tracked(*patterns: str) -> list[Path]:
    """Return what git has or would add, relative to the root."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "--", *patterns]
    names = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    return sorted({Path(name) for name in names if (ROOT / name).is_file()})


@pytest.mark.parametrize(
    "command",
    [
        ["ruff", "check"],
        ["ruff", "format", "--check"],
        ["lint-imports"],
        pytest.param(["mypy"], marks=pytest.mark.slow),
    ],
    ids=" ".join,
)
def test_tool_is_content(command: list[str]) -> None:
    program = Path(sys.executable).with_name(command[0])
    done = subprocess.run([program, *command[1:]], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_python_file_begins_with_its_purpose_in_one_line() -> None:
    purpose = re.compile(r'"""\S.*\."""$')
    files = [path for path in tracked("*.py") if not purpose.match((ROOT / path).read_text().split("\n", 1)[0])]
    assert files == []


def test_every_yaml_file_begins_with_a_comment() -> None:
    assert [path for path in tracked("*.yaml") if not (ROOT / path).read_text().startswith("# ")] == []


def test_files_are_short() -> None:
    def limit(path: Path) -> int:
        if path.parts[0] == "jobs":
            return MAX_LINES_JOB
        return MAX_LINES_KERNEL if path.stem.endswith(("_triton", "_cpu")) else MAX_LINES

    lengths = {path: len((ROOT / path).read_text().splitlines()) for path in tracked("*.py", "*.cpp")}
    assert len(lengths) > 50
    assert {path: n for path, n in lengths.items() if n > limit(path)} == {}


def test_every_test_file_mirrors_a_source_file() -> None:
    """tests/a/test_b.py tests rcdist/a/b.py or jobs/b.py; what belongs to no single file is listed here."""
    free = {"test_repo", "test_bad_input"}
    sources = {path.with_suffix("") for path in tracked("rcdist/*.py", "jobs/*.py")}
    for path in tracked("tests/*test_*.py"):
        stem = path.stem.removeprefix("test_")
        inside = Path(*path.parts[1:-1])
        # test_mlflow_server.py is a second file about mlflow.py.
        near = {Path("rcdist") / inside / stem, inside / stem, Path("rcdist") / inside / stem.rpartition("_")[0]}
        assert path.stem in free or near & sources, f"{path}: no {inside / stem}.py"


def test_no_path_of_a_machine_is_written_down() -> None:
    found = []
    for path in tracked("*.py", "*.md", "*.yaml", "*.toml", ".ci/*"):
        for number, line in enumerate((ROOT / path).read_text().splitlines(), start=1):
            if FOREIGN_PATH.search(line):
                found.append(f"{path}:{number}: {line}")
    assert found == []


def test_readme_tree_is_what_git_has() -> None:
    """The tree under Layout names each entry of the root, of rcdist/ and of jobs/; dot files and __init__.py apart."""
    block = re.search(r"^## Layout\n.*?^```\n(.*?)^```", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    assert block, "README.md has no tree under ## Layout"
    listed: list[str] = []
    folder = ""
    for line in block[1].splitlines():
        name = line.split()[0]
        if not line.startswith(" "):
            folder = name
        listed.append(folder + name if line.startswith(" ") else name)
    assert len(listed) == len(set(listed))

    expected = set()
    for path in tracked():
        if path.parts[0].startswith(".") or path.name == "__init__.py":
            continue
        depth = 2 if path.parts[0] in ("rcdist", "jobs") else 1
        for n in range(1, min(depth, len(path.parts)) + 1):
            expected.add("/".join(path.parts[:n]) + ("/" if n < len(path.parts) else ""))
    assert set(listed) == expected


def test_ci_runs_what_readme_says() -> None:
    """`.ci/run` takes its command out of the README: the marker must stand before exactly one block."""
    readme = (ROOT / "README.md").read_text()
    blocks = re.findall(r"^<!-- test command -->\n```bash\n(.*?)^```", readme, re.MULTILINE | re.DOTALL)
    assert len(blocks) == 1
    assert "pip install" in blocks[0]
    assert "pytest" in blocks[0]
    assert (ROOT / ".ci" / "run").stat().st_mode & 0o111
