"""A real Redis server for tests: started on a free loopback port, ended with the block, which is a SIGKILL.

Without persistence, or with a file in a folder that is kept: then what it answered for is there after the next start.
"""

from __future__ import annotations

import shutil
import socket
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import redis

_START_S = 10.0


@contextmanager
def running_redis(port: int | None = None, keeps: Path | None = None) -> Iterator[str]:
    """The URL of database 0 of a server of its own; `port`: a free one unless told; `keeps`: where it writes."""
    program = shutil.which("redis-server")
    if program is None:
        pytest.fail("Found no redis-server; the networked store is tested on a real one. apt-get install redis-server")
    port = port or free_port()
    with tempfile.TemporaryDirectory(prefix="redis-") as folder:
        command = [program, "--port", str(port), "--bind", "127.0.0.1", "--dir", str(keeps or folder), "--save", ""]
        command += ["--appendonly", "yes" if keeps else "no", "--appendfsync", "always"]
        server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            _wait_until_up(server, port)
            yield f"redis://127.0.0.1:{port}/0"
        finally:
            server.kill()
            server.wait()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_until_up(server: subprocess.Popen[bytes], port: int) -> None:
    waiting = threading.Event()
    with redis.Redis(port=port, socket_timeout=1) as client:
        for _ in range(int(_START_S / 0.02)):
            assert server.poll() is None, f"redis-server ended with {server.returncode}, is port {port} taken?"
            try:
                client.ping()
                return
            except redis.ConnectionError:
                waiting.wait(0.02)
    pytest.fail(f"redis-server did not answer within {_START_S} s")
