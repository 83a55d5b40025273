"""A real S3 server on loopback (moto's), for tests of runs whose storage is a bucket."""

import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from rcdist.bucket import open_bucket
from rcdist.ports import free_port

BUCKET = "rcdist-test"


@dataclass
class S3Server:
    """Hold where a server is.

    Attributes:
        environment: what a process needs to reach it.
    """

    port: int = field(default_factory=free_port)

    @property
    def environment(self) -> dict[str, str]:
        return {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.port}",
            "AWS_ACCESS_KEY_ID": "testing",
            "AWS_SECRET_ACCESS_KEY": "testing",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }


@contextmanager
def s3_server(*, is_strict: bool = False) -> Iterator[S3Server]:
    """Start a server with one empty bucket; this process's environment leads to it while it is open.

    Args:
        is_strict: refuse every key, as there is no user.
    """
    server = S3Server()
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(server.port)]
    variables = os.environ | ({"INITIAL_NO_AUTH_ACTION_COUNT": "1"} if is_strict else {})
    process = subprocess.Popen(command, env=variables, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    before = dict(os.environ)
    open_bucket.cache_clear()  # what a process has opened leads to the server before
    try:
        os.environ.update(server.environment)
        request = urllib.request.Request(f"{server.environment['AWS_ENDPOINT_URL']}/{BUCKET}", method="PUT")
        deadline = time.monotonic() + 60
        while True:
            try:
                urllib.request.urlopen(request, timeout=10).close()
                break
            except OSError:
                assert time.monotonic() < deadline and process.poll() is None
                time.sleep(0.1)
        yield server
    finally:
        process.kill()
        process.wait()
        os.environ.clear()
        os.environ.update(before)
