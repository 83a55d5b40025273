"""The repository keeps its own rules: linters, types, import directions, file sizes, and a README that is true."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from rcdist import errors
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


FREE_TESTS = {
    "test_repo",
    "test_search",
    "test_bad_input",
    "test_kernels",
    "test_steps",
    "test_two_gpus",
    "test_checkpointer_saving",
    "test_generated",
    "test_identity",
    "test_hostile",
    "test_hadamard_tokens",
    "test_autoscaling",
    "test_dashboards",
    "test_submission",
    "test_launcher_files",
    "test_kuberay_files",
}
"""Test files that belong to no single source file: of the repository, of all jobs, of a GPU, half of a long one."""

TESTED_ELSEWHERE = {
    "rcdist/benchmark/deepspeed_loop": "runs as processes of benchmark/test_overhead",
    "rcdist/benchmark/kernels": "needs a GPU",
    "rcdist/benchmark/operations": "jobs/test_benchmark",
    "rcdist/benchmark/residence": "jobs/test_benchmark",
    "rcdist/benchmark/steps": "jobs/test_benchmark",
    "rcdist/chaos/context": "chaos/test_faults",
    "rcdist/chaos/damage": "chaos/test_faults",
    "rcdist/chaos/disk": "chaos/test_faults",
    "rcdist/chaos/job": "chaos/test_faults",
    "rcdist/chaos/nodes": "chaos/test_faults",
    "rcdist/chaos/local_cluster": "the cluster of every test that has one",
    "rcdist/data/corpora": "data/test_remote",
    "rcdist/train/saves": "train/test_checkpointer, test_working_copy",
    "rcdist/train/shared_files": "test_working_copy",
    "rcdist/chaos/mlflow_server": "tracking/test_mlflow_server",
    "rcdist/chaos/runner": "chaos/test_faults",
    "rcdist/checkpoint/state": "checkpoint/test_manifest",
    "rcdist/checkpoint/weights": "inference and jobs/test_pretrain",
    "rcdist/config/architecture": "model/test_specs",
    "rcdist/config/data": "config/test_job",
    "rcdist/config/model": "config/test_job",
    "rcdist/config/section": "config/test_validation",
    "rcdist/data/neutral": "data/test_identity",
    "rcdist/data/shards": "data/test_loader",
    "rcdist/data/yardsticks": "data/test_prepare",
    "rcdist/train/deepspeed_keys": "train/test_deepspeed_config",
    "rcdist/benchmark/decoding": "jobs/test_benchmark",
    "rcdist/benchmark/static_llama": "needs a GPU",
    "rcdist/evaluate": "jobs/test_pretrain",
    "rcdist/benchmark/settings": "jobs/test_benchmark",
    "rcdist/benchmark/serving": "jobs/test_benchmark",
    "rcdist/serve/completion": "serve/test_app",
    "rcdist/serve/continuation": "serve/test_app",
    "rcdist/serve/deployment": "jobs/test_serve",
    "rcdist/serve/limits": "serve/test_app",
    "rcdist/serve/metrics": "serve/test_app",
    "rcdist/serve/protocol": "serve/test_app",
    "rcdist/serve/server": "jobs/test_serve",
    "rcdist/inference/from_huggingface": "inference/test_export_hf",
    "rcdist/inference/card": "jobs/test_pretrain",
    "rcdist/inference/huggingface/configuration_rcdist": "inference/test_export_hf",
    "rcdist/inference/huggingface/modeling_rcdist": "inference/test_export_hf",
    "jobs/export": "jobs/test_pretrain",
    "rcdist/inference/folder": "inference/test_packed",
    "rcdist/inference/load": "jobs/test_pretrain",
    "rcdist/inference/score": "jobs/test_pretrain",
    "rcdist/printing": "test_exits",
    "rcdist/ops/autograd": "ops/test_backend",
    "rcdist/ops/factors": "ops/test_backend",
    "rcdist/ops/gated": "ops/test_backend",
    "rcdist/ops/weights": "ops/test_project",
    "rcdist/report/figures": "report/test_page",
    "rcdist/report/runs": "report/test_page",
    "rcdist/result": "test_launch",
    "rcdist/train/flat_steps": "train/test_engine and gpu/test_steps",
    "rcdist/train/hooked_steps": "train/test_engine",
    "rcdist/ops/replay": "gpu/test_steps",
    "rcdist/train/step_result": "train/test_engine",
    "rcdist/study/worker": "study/test_driver",
    "rcdist/sweep/page": "sweep/test_results",
    "rcdist/sweep/progress": "sweep/test_driver",
    "rcdist/sweep/publish": "sweep/test_results",
    "rcdist/sweep/settings": "jobs/test_sweep",
    "rcdist/sweep/trial": "sweep/test_driver",
    "rcdist/tracking/samples": "chaos/test_verdict",
    "rcdist/train/collectives": "train/test_broadcast",
    "rcdist/train/evaluate": "jobs/test_pretrain",
    "rcdist/train/events": "train/test_checkpointer",
    "rcdist/train/loop": "jobs/test_pretrain",
    "rcdist/train/payload": "train/test_checkpointer",
    "jobs/evaluate": "jobs/test_pretrain",
    "jobs/generate": "jobs/test_pretrain",
    "jobs/doctor": "test_doctor",
}
"""Source files without a test file of their own name, and what tests them."""

TWINS = ("_cpu", "_triton", "_reference", "_common")
"""Ends of the names of an operation's twins: ops/test_project, test_backend and test_backend_triton test them all."""


def stem_of_test(path: Path) -> set[Path]:
    """Return what a test file may be about: test_mlflow_server.py is a second file about mlflow.py."""
    stem, inside = path.stem.removeprefix("test_"), Path(*path.parts[1:-1])
    near = {Path("rcdist") / inside / stem, inside / stem}
    return near | ({Path("rcdist") / inside / stem.rpartition("_")[0]} if "_" in stem else set())


def test_tests_mirror_sources_and_sources_tests() -> None:
    """tests/a/test_b.py tests rcdist/a/b.py, the package rcdist/a/b or jobs/b.py, and there is one for each."""
    files = tracked("rcdist/*.py", "jobs/*.py")
    sources = {path.parent if path.stem == "__init__" else path.with_suffix("") for path in files}
    tests = [path for path in tracked("tests/*test_*.py") if path.stem not in FREE_TESTS]
    assert [str(path) for path in tests if not stem_of_test(path) & sources] == []
    packages = {path.parent for path in files if path.stem == "__init__"}
    tested = set().union(*map(stem_of_test, tests))
    own = {path for path in sources - packages if not path.stem.endswith(TWINS) and path.parent not in tested}
    assert {str(path) for path in own - tested} == set(TESTED_ELSEWHERE)


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


def test_every_exit_code_is_documented() -> None:
    text = (ROOT / "rcdist" / "README.md").read_text()
    documented = {int(code) for code in re.findall(r"^\| (\d+) \|", text, re.MULTILINE)}
    assert documented == {value for name, value in vars(errors).items() if name.startswith("EXIT_")}


def test_links_and_paths_of_the_readmes_exist() -> None:
    for readme in tracked("*README.md"):
        text, folder = (ROOT / readme).read_text(), (ROOT / readme).parent
        named = re.findall(r"\]\(([^)#:]+)\)", text) + re.findall(r"`([\w./]+(?:\.py|\.md|\.yaml))`", text)
        places = (folder, ROOT, ROOT / "rcdist")
        missing = [name for name in named if not any((place / name).exists() for place in places)]
        assert set(missing) <= {"config.yaml", "x.py", "x_cpu.py", "x_triton.py"}, f"{readme}: {missing}"


def test_ci_runs_what_readme_says() -> None:
    """`.ci/run` takes its command out of the README: the marker must stand before exactly one block."""
    readme = (ROOT / "README.md").read_text()
    blocks = re.findall(r"^<!-- test command -->\n```bash\n(.*?)^```", readme, re.MULTILINE | re.DOTALL)
    assert len(blocks) == 1
    assert "pip install" in blocks[0]
    assert "pytest" in blocks[0]
    assert (ROOT / ".ci" / "run").stat().st_mode & 0o111
