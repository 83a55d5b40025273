"""A real MLflow server that can be killed and started again."""

import os
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

from rcdist.ports import free_port

_START_S = 120.0


class MlflowServer:
    """Serve an SQLite file on a port of its own.

    Args:
        folder: of database, artifacts and log.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._port = free_port()
        self.uri = f"http://127.0.0.1:{self._port}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and wait until it answers (10 to 20 s)."""
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self._port)]
        command += ["--workers", "1", "--backend-store-uri", f"sqlite:///{self._folder}/mlflow.db"]
        command += ["--artifacts-destination", str(self._folder / "artifacts")]
        log = self._folder / "server.log"
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                command, stdout=output, stderr=output, cwd=self._folder, start_new_session=True
            )
        deadline = time.monotonic() + _START_S
        while True:
            try:
                urllib.request.urlopen(f"{self.uri}/health", timeout=5).close()
                return
            except OSError:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"MLflow did not start: {log.read_text()[-2000:]}") from None
                time.sleep(0.2)

    def kill(self) -> None:
        """End it without notice; a second call does nothing."""
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None
