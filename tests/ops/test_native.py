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


def test_where_the_home_cannot_be_written_kernels_are_kept_among_temporary_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(native.tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))  # no folder, whoever asks
    folder = native._cached_path([]).parent
    assert folder == tmp_path / f"rcdist-{os.getuid()}" and folder.stat().st_mode & 0o777 == 0o700
    assert native._cached_path([]).parent == folder
    folder.chmod(0o770)  # what others can write would be code of theirs
    with pytest.raises(OSError, match="only this user"):
        native._cached_path([])
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert native._cached_path([]).parent == tmp_path / "cache" / "rcdist"


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
