"""Wait in a test for what another process does, no longer than that can still happen."""

import subprocess
import time
from collections.abc import Callable


def wait_for(
    condition: Callable[[], bool], *jobs: subprocess.Popen[str], timeout_s: float = 150.0, every_s: float = 0.2
) -> None:
    """Wait until a condition holds.

    Args:
        condition: is asked again and again; may assert what makes waiting useless.
        jobs: that it depends on; one that fails meanwhile fails the test with its output.
        timeout_s: the longest wait.
        every_s: seconds between two looks.
    """
    deadline = time.monotonic() + timeout_s
    while not condition():
        for job in jobs:
            assert job.poll() in (None, 0), job.communicate()[0]
        assert time.monotonic() < deadline, f"not within {timeout_s:g} s"
        time.sleep(every_s)
