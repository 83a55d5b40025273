"""What a run was charged so far, on disk: work that is lost with a worker was paid for too."""

import json
import time
from pathlib import Path

from rcdist.tracking.ledger import Ledger

_FILE = "ledger.json"
_EVERY_S = 0.2


class Heartbeat:
    """Write the ledger beside the checkpoints, and bring a restored ledger up to what was charged since.

    Args:
        run_dir: of the run.
        launch: names the job; workers that one job starts again were held, and so paid for, in between.
    """

    def __init__(self, run_dir: Path, launch: float) -> None:
        self._path, self._launch = run_dir / _FILE, launch
        self._written = -_EVERY_S

    def beat(self, ledger: Ledger) -> None:
        """Write the ledger, five times a second at most."""
        if time.monotonic() - self._written < _EVERY_S:
            return
        self._written = time.monotonic()
        part = self._path.with_suffix(".part")
        part.write_text(json.dumps({"launch": self._launch, "time": time.time(), "ledger": ledger.state_dict()}))
        part.replace(self._path)

    def recover(self, ledger: Ledger) -> float:
        """Add what was charged after the checkpoint that `ledger` comes from.

        Returns:
            Wall seconds since then that this job held its workers without charging for them.
        """
        if not self._path.exists():
            return 0.0
        found = json.loads(self._path.read_text())
        charged = Ledger.from_state(found["ledger"])
        if charged.device_s > ledger.device_s:
            ledger.lost_device_s = charged.lost_device_s + charged.useful_device_s - ledger.useful_device_s
            for name in ("device_s", "usd", "kwh", "startup_device_s", "checkpoint_device_s", "hardware_flops"):
                setattr(ledger, name, getattr(charged, name))
        return max(time.time() - found["time"], 0.0) if found["launch"] == self._launch else 0.0
