"""The kernels are compiled once, by one process, and without a compiler there is a way that says so."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from rcdist.ops import native
from tests.conftest import ROOT

ASK = "from rcdist.ops.backend import backend_of; import torch; print(backend_of(torch.zeros(1)))"


def start(compiler: str, cache: Path, **more: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "CXX": compiler, "XDG_CACHE_HOME": str(cache), "PYTHONPATH": str(ROOT), **more}
    command = [sys.executable, "-c", ASK]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_without_a_compiler_the_reference_is_used_and_says_so(tmp_path: Path) -> None:
    output, errors = start("no-such-compiler", tmp_path).communicate()
    assert output == "reference\n"
    assert "no-such-compiler" in errors and "Install g++" in errors and "Traceback" not in errors


@pytest.mark.slow
def test_of_two_processes_one_compiles_and_both_use_it(tmp_path: Path) -> None:
    log, compiler = tmp_path / "log", tmp_path / "compiler"
    compiler.write_text(f'#!/bin/sh\necho "$@" >> {log}\nexec g++ "$@"\n')
    compiler.chmod(0o755)
    # The least that there is to compile: it takes half as long.
    processes = [start(str(compiler), tmp_path, RCDIST_MAX_CPU_ISA="x86-64") for _ in range(2)]
    for process in processes:
        output, errors = process.communicate(timeout=200)
        assert (output, errors) == ("cpu\n", "")
    runs = log.read_text().splitlines()
    assert len([run for run in runs if " -c " in run]) == len(list(native.SOURCES.glob("*.cpp")))
    assert len([run for run in runs if " -shared " in run]) == 1
    assert {path.suffix for path in (tmp_path / "rcdist").iterdir()} == {".so", ".lock"}
