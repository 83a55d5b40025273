"""Free ports of this machine, for servers that start seconds later."""

import random
import socket

_RANGE = range(20_000, 32_000)
"""Above those that Ray gives its workers, below those that Linux gives to outgoing connections and to servers that ask
for any: nobody else takes one by chance meanwhile."""


def free_ports(count: int) -> list[int]:
    """Return different ports that nothing listens on now."""
    found: set[int] = set()
    while len(found) < count:
        port = random.SystemRandom().choice(_RANGE)
        try:
            socket.create_server(("127.0.0.1", port)).close()
        except OSError:
            continue
        found.add(port)
    return list(found)


def free_port() -> int:
    """Return a port that nothing listens on now."""
    return free_ports(1)[0]
