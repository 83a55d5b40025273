"""What a job waits for from its start to its first step, stage by stage."""

import time


class Startup:
    """Note when each stage of a start ends; a worker goes on where the driver has got to.

    Args:
        began: Unix time of the start.
        ended: what has ended so far: names, and the Unix time of the end of each.
    """

    def __init__(self, began: float, ended: tuple[tuple[str, float], ...] = ()) -> None:
        self.began, self.ended = began, ended

    def mark(self, name: str, end: float | None = None) -> None:
        """Note that a stage ends, now or at a Unix time, and the next one begins."""
        self.ended = (*self.ended, (name, time.time() if end is None else end))

    def describe(self) -> str:
        """Return one line: the seconds of all, and of each stage."""
        before, parts = self.began, []
        for name, end in self.ended:
            parts.append(f"{name} {max(end - before, 0.0):.1f}")
            before = end
        return f"start-up {before - self.began:.1f} s: {', '.join(parts)}"
