"""What one look found, and what to do about it."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """Say what one look found.

    Attributes:
        what: was looked at.
        found: there.
        remedy: what to do. None: it is as it must be.
    """

    what: str
    found: str
    remedy: str | None = None

    def __str__(self) -> str:
        return f"{'ok     ' if self.remedy is None else 'PROBLEM'}  {self.what}: {self.found}" + (
            "" if self.remedy is None else f". {self.remedy.rstrip('.')}."
        )
