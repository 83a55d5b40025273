"""RCDIST_MAX_CPU_ISA makes a process, and the libraries in it, act like a processor with less."""

import os
import subprocess
import sys

import pytest

from rcdist.errors import ConfigError
from rcdist.ops import processor
from rcdist.ops.processor import capability, has_bf16, has_onednn_int8, limited
from tests.conftest import ROOT

ASK = """
import torch
from rcdist.ops.backend import describe_backend
print(torch.backends.cpu.get_cpu_capability(), torch.ops.mkldnn._is_mkldnn_bf16_supported())
print(describe_backend(torch.zeros(1)))
"""


def test_a_limited_process_says_what_it_uses() -> None:
    environment = {**os.environ, processor.MAX_ISA: "avx2", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", ASK], env=environment, capture_output=True, text=True)
    assert done.stdout.splitlines() == ["AVX2 False", "backend cpu: avx2, int8 products by c++"]


def test_another_name_is_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(processor.MAX_ISA, "sse")
    with pytest.raises(ConfigError, match='RCDIST_MAX_CPU_ISA="sse": not one of native, avx2, x86-64'):
        processor._limit_libraries()


def test_our_own_choices_can_be_limited_for_a_while() -> None:
    before = capability()
    with limited("avx2"):
        assert capability() in ("avx2", "default")
        assert not has_bf16() and not has_onednn_int8()
    with pytest.raises(ZeroDivisionError), limited("x86-64"):
        raise ZeroDivisionError
    assert capability() == before
