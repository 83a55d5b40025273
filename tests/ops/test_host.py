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
    def fill(): torch.empty(2**26).fill_(1)
    fill(), fill()  # what an aligned tensor leaves behind is a little too small for the next one, once
    before = faults()
    for _ in range(4): fill()
    print(faults() - before)
    """
    # Mapped anew each time, it would be 4 x 65,536 pages of 4 KiB, or 4 x 128 huge ones.
    assert int(run(program)) < 100
