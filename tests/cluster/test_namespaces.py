"""Machines in network namespaces: they reach one another and nothing else, die at once, and leave nothing behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from benchmarks.namespaces import HUB, PREFIX, Network, remove_stale

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("namespaces")]
ANSWERS = """
import socket, sys
with socket.create_server((sys.argv[1], 7000)) as server:
    print("up", flush=True)
    while True:
        server.accept()[0].sendall(b"here")
"""
ASKS = """
import socket, sys
with socket.create_connection((sys.argv[1], 7000), timeout=1) as connection:
    print(connection.recv(9).decode(), end="")
"""
MAKER = """
import time
from benchmarks.namespaces import Network
with Network() as network:
    network.add("one")
    network.start("one", ["sleep", "1000"], {"PATH": "/usr/bin:/bin"})
    print("up", flush=True)
    time.sleep(1000)
"""


def asked(network: Network, on: str, address: str) -> str:
    """What answers there, or the error."""
    asking = network.start(on, [sys.executable, "-c", ASKS, address], os.environ, stdout=-1, stderr=-1)
    answer, error = asking.communicate(timeout=20)
    return answer or error.splitlines()[-1]


def answering(network: Network, on: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", ANSWERS, network.addresses[on]]
    server = network.start(on, command, os.environ, stdout=subprocess.PIPE)
    assert server.stdout is not None
    assert server.stdout.readline() == "up\n"
    return server


def test_machines_reach_one_another_until_one_dies_or_its_cable_is_out() -> None:
    with Network() as network:
        one = network.add("one")
        network.add("two")
        server = answering(network, "one")
        assert asked(network, "two", one) == asked(network, HUB, one) == "here"
        network.cut("one")
        assert "timed out" in asked(network, "two", one) or "unreachable" in asked(network, "two", one)
        network.mend("one")
        assert asked(network, "two", one) == "here"
        assert network.kill("one") == 1
        assert server.wait(timeout=10) == -signal.SIGKILL
        assert "refused" in asked(network, "two", one)
        assert server.stdout is not None
        server.stdout.close()


def test_nothing_of_it_is_in_the_machines_own_network() -> None:
    with Network() as network:
        network.add("one")
        server = answering(network, "one")
        links = subprocess.run(["ip", "-o", "addr"], capture_output=True, text=True, check=True).stdout
        assert network.addresses["one"].rpartition(".")[0] not in links
        assert "unreachable" in asked(network, "one", "192.0.2.1")  # no way out
        assert server.stdout is not None
        server.stdout.close()
    assert server.wait(timeout=10) == -signal.SIGKILL


def test_what_a_killed_process_left_is_removed_by_the_next() -> None:
    maker = subprocess.Popen([sys.executable, "-c", MAKER], stdout=subprocess.PIPE, text=True)
    assert maker.stdout is not None
    assert maker.stdout.readline() == "up\n"
    maker.kill()
    maker.wait()
    maker.stdout.close()
    assert sorted(remove_stale()) == [f"{PREFIX}{maker.pid}-{name}" for name in ("hub", "one")]
    deadline = time.monotonic() + 10
    while _names_of(maker.pid):
        assert time.monotonic() < deadline
    assert remove_stale() == []


def _names_of(pid: int) -> list[str]:
    listed = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True).stdout
    return [line for line in listed.splitlines() if line.startswith(f"{PREFIX}{pid}-")]
