"""Ports that are given out are different ones, nobody listens on them, and nobody is given them by Linux or Ray."""

import socket
from pathlib import Path

import pytest

from rcdist import ports


def test_ports_are_different_and_nobody_listens_on_them(monkeypatch: pytest.MonkeyPatch) -> None:
    several = ports.free_ports(3)
    monkeypatch.setattr(ports, "_RANGE", several)
    with socket.create_server(("127.0.0.1", several[0])):
        for _ in range(20):
            assert set(ports.free_ports(2)) == set(several[1:])


def test_linux_and_ray_give_them_to_nobody() -> None:
    first, last = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
    if first < 32_000:
        pytest.skip(f"this machine was set up to give out ports from {first} on")
    found = set(ports.free_ports(50))
    assert not found & set(range(first, last + 1))
    assert not found & set(range(10_002, 20_000))  # `ray start`: --min-worker-port, --max-worker-port
