"""The Ray Serve deployment: a replica holds the model, a thread that works on it, and the HTTP application."""

import sys
import traceback
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ray import serve
from starlette.types import ASGIApp

from rcdist.inference.load import LoadedModel, choose_device, load_model
from rcdist.inference.packed import pack_model
from rcdist.ops.host import prepare_host
from rcdist.serve.app import build_app
from rcdist.serve.batcher import Batcher
from rcdist.serve.completion import Served
from rcdist.serve.continuation import Mailbox
from rcdist.serve.limits import Limits

_SWITCH_S = 0.0005
"""How long the event loop may hold Python's lock while a step wants it back, which is after each of its kernels."""
_HEALTH_CHECK_S = 5.0


@dataclass(frozen=True)
class ServerSettings:
    """Say what a replica serves.

    Attributes:
        folder: a run, a checkpoint or a packed folder, which every node with a replica sees.
        name: of the model.
        device: where to compute.
        threads: of a replica on a CPU.
        limits: of requests.
        key: `limits.key_digest` of the API key; None: there is none.
    """

    folder: str
    name: str
    device: Literal["cpu", "cuda"]
    threads: int
    limits: Limits
    key: bytes | None = None


def load_served(folder: Path, device: Literal["auto", "cpu", "cuda"]) -> LoadedModel:
    """Load a model packed, whatever the folder is: what it says does not depend on it.

    Raises:
        CheckpointError: see `load_model`.
    """
    loaded = load_model(folder, choose_device(device))
    if loaded.manifest is not None and loaded.config.model.rounding == "nearest":
        pack_model(loaded.model)
    loaded.model.requires_grad_(False)
    return loaded


@serve.ingress()
class CompletionServer:
    """Answer requests from one model.

    Args:
        settings: what is served.
    """

    def __init__(self, settings: ServerSettings) -> None:
        sys.setswitchinterval(_SWITCH_S)
        # One thread does all that computes: OpenMP keeps a team for each that ever did, and lets the threads of a team
        # sleep, not spin, between kernels as soon as all teams together have more of them than there are cores.
        computing = ThreadPoolExecutor(1, "batcher")
        self._key, self._served = settings.key, computing.submit(_prepare, settings).result()
        self._batcher = self._served.batcher
        computing.submit(self._work)

    def __serve_build_asgi_app__(self) -> ASGIApp:
        """Return the application, as Ray Serve asks for it."""
        return build_app(self._served, self._key)

    def check_health(self) -> None:
        """Tell Ray Serve whether this replica must be replaced.

        Raises:
            RuntimeError: it must.
        """
        if not self._batcher.is_alive:
            raise RuntimeError("the batcher has stopped")

    def __del__(self) -> None:
        """End the thread; Ray Serve calls this when it takes the replica down."""
        self._batcher.close()

    def _work(self) -> None:
        try:
            self._batcher.run()
        except Exception:
            traceback.print_exc()


def _prepare(settings: ServerSettings) -> Served:
    """Load the model, and be ready for the first request."""
    if settings.device == "cpu":
        prepare_host(settings.threads)
    loaded = load_served(Path(settings.folder), settings.device)
    mailbox, limits = Mailbox(), settings.limits
    batcher = Batcher(
        loaded.model,
        loaded.tokenizer,
        mailbox.publish,
        max_running=limits.running,
        max_waiting=limits.waiting,
    )
    batcher.warm_up()
    created = int(Path(settings.folder).stat().st_mtime)
    return Served(settings.name, loaded.tokenizer, batcher, mailbox, limits, created)


def build_deployment(settings: ServerSettings, num_replicas: int) -> serve.Application:
    """Return what `serve.run` takes.

    Args:
        settings: of each replica.
        num_replicas: of them, each with a GPU or with `settings.threads` CPUs.
    """
    on_gpu = settings.device == "cuda"
    most = settings.limits.running + settings.limits.waiting
    deployment = serve.deployment(
        CompletionServer,
        name="completions",
        num_replicas=num_replicas,
        # Requests beyond the batcher's room are refused by it, with a message; far beyond, Serve refuses them itself.
        max_ongoing_requests=2 * most + 64,
        max_queued_requests=most,
        health_check_period_s=_HEALTH_CHECK_S,
        graceful_shutdown_timeout_s=5.0,
        ray_actor_options={"num_gpus": 1} if on_gpu else {"num_cpus": settings.threads},
    )
    return deployment.bind(settings)
