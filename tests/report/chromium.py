"""Drive a real Chromium over a page on disk: its DOM once scripts have run, and a picture of it."""

import shutil
import subprocess
from pathlib import Path

import pytest

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

needs_chromium = pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine; CI has one")


def browse(page: Path, profile: Path, *, dark: bool, picture: Path | None = None, size: str = "1280,2400") -> str:
    """Return the page's DOM after its scripts; take a picture too if asked for."""
    assert BROWSER is not None
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
    command += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
    command += [f"--user-data-dir={profile}", "--virtual-time-budget=10000", f"--window-size={size}"]
    command += [f"--blink-settings=preferredColorScheme={0 if dark else 1}"]
    # Whatever it would look up is not there: a page that needs the network shows it.
    command += ["--host-resolver-rules=MAP * ~NOTFOUND", "--hide-scrollbars"]
    if picture is not None:
        command += [f"--screenshot={picture}"]
    done = subprocess.run([*command, "--dump-dom", page.as_uri()], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout
