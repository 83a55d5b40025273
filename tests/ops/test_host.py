"""A prepared process has no denormal numbers and keeps its memory; each test in a process of its own."""

import subprocess
import sys
import textwrap

import pytest


def run(program: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, check=True, timeout=120
    )
    return done.stdout.strip()


def test_flushes_denormals_and_sets_threads() -> None:
    program = """
    import torch
    from rcdist.ops.host import prepare_host
    prepare_host(1)
    print(float(torch.tensor(1e-30) * 1e-10), torch.get_num_threads())
    """
    assert run(program) == "0.0 1"


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_freed_memory_is_not_mapped_again() -> None:
    program = """
    import resource, torch
    from rcdist.ops.host import prepare_host
    prepare_host(1)
    def faults(): return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    def fill(): [torch.empty(2**20).fill_(1) for _ in range(16)]
    for _ in range(8): fill()
    before = faults()
    for _ in range(8): fill()
    print(faults() - before)
    """
    # Mapped anew each time, it would be 8 x 16 x 1024 pages of 4 KiB; a gap too small for the next tensor costs one.
    assert int(run(program)) < 8 * 16 * 1024 / 8
