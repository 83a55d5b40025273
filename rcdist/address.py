"""Find the address of the Ray that a job goes to, and prove within seconds that it is there and can be used."""

import os
import socket
import threading

from rcdist.config import JobConfig
from rcdist.errors import ClusterError, ConfigError

_VARIABLE = "RAY_ADDRESS"
_CONNECT_S = 5.0
_ANSWER_S = 10.0
_MAX_SOCKET_BYTES = 107
"""Of the path of a Unix socket; Linux."""


def given_address(config: JobConfig) -> tuple[str, str] | None:
    """Return the setting or variable that names a cluster, and what it says; None: a Ray of the job's own."""
    field, value = "cluster.address", config.cluster.address
    if value in (None, "", "auto"):  # as everywhere in Ray the variable comes before the Ray on this machine
        value = os.environ.get(_VARIABLE) or value
        field = _VARIABLE if os.environ.get(_VARIABLE) else field
    return (field, value) if value and value != "local" else None


def find_address(config: JobConfig) -> str | None:
    """Return the HOST:PORT of the job's cluster, which answers; None: a Ray of the job's own.

    Ray itself would try for minutes, in native code that no signal interrupts.

    Raises:
        ConfigError: not the address of a Ray cluster.
        ClusterError: no Ray answers there.
    """
    given = given_address(config)
    if given is None:
        _check_socket_path()
        return None
    field, value = given
    address = _find_here(field) if value == "auto" else value
    _check_form(field, address)
    _check_answers(field, value, address)
    return address


def _find_here(field: str) -> str:
    """Return the address of the Ray that runs on this machine: what `auto` means."""
    from ray._private.services import canonicalize_bootstrap_address

    try:
        found = canonicalize_bootstrap_address("auto")
    except (ConnectionError, ValueError):
        found = None
    if not found:
        raise ClusterError(
            field, "auto", "no Ray runs on this machine", "Start one, give HOST:PORT, or leave the address out"
        )
    return str(found)


def _check_form(field: str, address: str) -> None:
    scheme, separator, _ = address.partition("://")
    if separator:
        rule = {
            "http": "that is a dashboard, for `ray job submit`",
            "https": "that is a dashboard, for `ray job submit`",
            "ray": "Ray Client cannot run Ray Train",
        }.get(scheme, "not HOST:PORT, auto or local")
        remedy = "Use `ray job submit --address http://HOST:8265`, or on a node of the cluster HOST:6379 or auto"
        raise ConfigError(field, address, rule, remedy)
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise ConfigError(field, address, "not HOST:PORT, auto or local", "Give the head's address, as 10.0.0.1:6379")


def _check_answers(field: str, value: str, address: str) -> None:
    host, _, port = address.rpartition(":")
    remedy = "Start the cluster, correct the address, or leave it out for a Ray of the job's own"
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_S).close()
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ClusterError(field, value, f"nothing answers at {address} ({reason})", remedy) from error
    # Something answers; that it is Ray is asked in a thread, because this call cannot be interrupted.
    failure: list[Exception] = [TimeoutError()]

    def ask() -> None:
        from ray._private.authentication.authentication_token_setup import maybe_enable_token_auth_if_token_available
        from ray._raylet import GcsClient  # type: ignore[attr-defined]

        if value == "auto":  # only then Ray takes the token of the home folder unasked
            maybe_enable_token_auth_if_token_available(warn_if_disabled=False)
        try:
            GcsClient(address=address)
            failure.clear()
        except Exception as error:
            failure[:] = [error]

    thread = threading.Thread(target=ask, daemon=True, name="find-cluster")
    thread.start()
    thread.join(_ANSWER_S)
    if failure and type(failure[0]).__name__ == "AuthenticationError":
        rule = f"the cluster at {address} takes only who has its token"
        remedy = "Set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN_PATH to the token that the cluster was started with"
        raise ClusterError(field, value, rule, remedy)
    if failure:
        rule = f"what listens at {address} is not the head of a Ray cluster, or does not answer within {_ANSWER_S:g} s"
        raise ClusterError(field, value, rule, remedy)


def _check_socket_path() -> None:
    """Refuse a temporary folder under which a local Ray cannot have its sockets."""
    name = next((name for name in ("RAY_TMPDIR", "TMPDIR") if name in os.environ), None)
    if name is None:
        return
    folder = os.environ[name]
    longest = os.path.join(folder, "ray", f"session_{'0' * 26}_{os.getpid()}", "sockets", "plasma_store")
    excess = len(os.fsencode(longest)) - _MAX_SOCKET_BYTES
    if excess > 0:
        most = len(os.fsencode(folder)) - excess
        rule = f"Ray's sockets lie below it, whose path can have {_MAX_SOCKET_BYTES} bytes: {most} for this folder"
        raise ConfigError(name, folder, rule, "Set RAY_TMPDIR=/tmp, or to another folder with a short name")
