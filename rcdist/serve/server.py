"""Start the server on Ray Serve and keep it until a signal; everything that can be wrong is refused before."""

import ipaddress
import os
import socket
import threading
from pathlib import Path
from typing import Literal

from rcdist.cluster import ray_session
from rcdist.errors import ClusterError, ConfigError
from rcdist.serve.limits import Limits, key_digest

_APPLICATION = "rcdist"


def run_server(
    folder: Path,
    *,
    name: str | None,
    host: str,
    port: int,
    device: Literal["auto", "cpu", "cuda"],
    num_replicas: int,
    threads: int | None,
    limits: Limits,
    api_key: str | None,
) -> None:
    """Serve until KeyboardInterrupt.

    Args:
        folder: a run, a checkpoint or a packed folder.
        name: of the model in requests; None: the run's.
        host: address to listen on.
        port: port to listen on.
        device: where to compute.
        num_replicas: copies of the model.
        threads: of each on a CPU; None: this machine's cores, divided by them.
        limits: of requests.
        api_key: that requests must bring; None: everyone may ask.

    Raises:
        ConfigError: the address is taken, cannot be had, or is open to others without a key.
        CheckpointError: the folder holds no model that can be loaded.
        ClusterError: Ray cannot be started or joined, or a replica does not start.
    """
    try:
        from ray import serve

        from rcdist.serve.deployment import ServerSettings, build_deployment, load_served
    except ImportError as error:
        remedy = "Install it: pip install -e '.[serve]'"
        raise ConfigError("", "", f"Ray Serve is not whole here ({error})", remedy) from error

    _check_address(host, port, api_key)
    # Here, before a replica is asked for: what is wrong with the folder is one line.
    loaded = load_served(folder, "cpu")
    name, config = name or loaded.config.name, loaded.config
    del loaded
    with ray_session(config):
        chosen = _choose_device(device)
        settings = ServerSettings(
            str(folder.resolve()),
            name,
            chosen,
            threads or max((os.cpu_count() or 1) // num_replicas, 1),
            limits,
            None if api_key is None else key_digest(api_key),
        )
        quiet = {"log_level": "WARNING", "enable_access_log": False}
        http_options = {"host": host, "port": port}
        serve.start(proxy_location="HeadOnly", http_options=http_options, logging_config=quiet)
        try:
            try:
                serve.run(build_deployment(settings, num_replicas), name=_APPLICATION, route_prefix="/")
            except RuntimeError as error:
                reason = (str(error).strip() or "no reason given").splitlines()[-1]
                raise ClusterError("model", str(folder), f"no replica starts: {reason}", "See Ray's logs") from error
            print(f"{name} at http://{host}:{port}/v1 ({chosen})", flush=True)
            threading.Event().wait()
        finally:
            serve.shutdown()


def _check_address(host: str, port: int, api_key: str | None) -> None:
    try:
        (family, _, _, _, address), *_ = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise ConfigError("host", host, f"is no address of this machine ({error})", "Use 127.0.0.1") from error
    if not ipaddress.ip_address(address[0]).is_loopback and api_key is None:
        rule = "others can reach that, and there is no API key"
        raise ConfigError("host", host, rule, "Put one into RCDIST_API_KEY, or use 127.0.0.1")
    try:
        with socket.socket(family, socket.SOCK_STREAM) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
    except OSError as error:
        raise ConfigError("port", port, f"{host} cannot be listened on ({error.strerror})", "Choose another") from error


def _choose_device(device: Literal["auto", "cpu", "cuda"]) -> Literal["cpu", "cuda"]:
    import ray

    gpus = int(ray.cluster_resources().get("GPU", 0))
    if device == "cuda" and gpus == 0:
        raise ClusterError("device", device, "Ray finds 0 GPUs", "Use auto or cpu")
    return "cpu" if device == "cpu" or gpus == 0 else "cuda"
