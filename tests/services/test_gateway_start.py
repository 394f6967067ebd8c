"""`sonder serve` as a process: what it listens on, how it mends itself, what it leaves behind."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from services.gateway.app import STAGES
from services.gateway.proxy import LOOPBACK, free_ports
from services.gateway.start import started, wait_until_ready
from sonder.client import Client
from sonder.core.errors import ConfigurationError, NotReady

if TYPE_CHECKING:
    from conftest import TinyRelease

COMMAND = "import sys; from services.gateway.start import serve_forever as s; s(sys.argv[1], port=int(sys.argv[2]))"


@dataclass
class Running:
    """A serving process, leader of its own session: whatever it started is of that session."""

    process: subprocess.Popen[bytes]
    port: int
    scratch: Path

    def members(self) -> dict[int, str]:
        """Processes of the session that are alive -> their titles."""
        found = {}
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                state, _, _, session = (entry / "stat").read_text().rsplit(")", 1)[1].split()[:4]
                title = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except (FileNotFoundError, ProcessLookupError):
                continue
            if int(session) == self.process.pid and state != "Z":
                found[int(entry.name)] = title
        return found

    def listeners(self) -> list[tuple[int, str, int]]:
        """Process, address and port of every TCP listener of the session."""
        sockets = {}
        for table, family in (("tcp", socket.AF_INET), ("tcp6", socket.AF_INET6)):
            for line in Path("/proc/net", table).read_text().splitlines()[1:]:
                fields = line.split()
                address, port = fields[1].split(":")
                words = [bytes.fromhex(address[i : i + 8])[::-1] for i in range(0, len(address), 8)]
                if fields[3] == "0A":  # LISTEN
                    sockets[fields[9]] = (socket.inet_ntop(family, b"".join(words)), int(port, 16))
        found = []
        for pid in self.members():
            for link in Path(f"/proc/{pid}/fd").glob("*"):
                try:
                    inode = os.readlink(link).removeprefix("socket:[").removesuffix("]")
                except FileNotFoundError:
                    continue
                if inode in sockets:
                    found.append((pid, *sockets[inode]))
        return found

    def replica_of(self, deployment: str) -> int | None:
        pids = [pid for pid, title in self.members().items() if f"ServeReplica:sonder:{deployment}" in title]
        return pids[0] if pids else None


def eventually(holds: Callable[[], bool], what: str, within_s: float = 120.0) -> None:
    pause, deadline = threading.Event(), time.monotonic() + within_s
    while not holds():
        assert time.monotonic() < deadline, f"not within {within_s:.0f} s: {what}"
        pause.wait(0.1)


@pytest.fixture
def launch(tiny_release: TinyRelease) -> Iterator[Callable[[], Running]]:
    running: list[Running] = []

    def start() -> Running:
        scratch = Path(tempfile.mkdtemp(prefix="s"))  # short: socket paths end at 107 characters
        (port,) = free_ports(1)
        command = [sys.executable, "-c", COMMAND, tiny_release.workspace.root.uri, str(port)]
        environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
        process = subprocess.Popen(
            command, env={**environment, "TMPDIR": str(scratch)}, start_new_session=True, stdout=subprocess.PIPE
        )
        running.append(Running(process, port, scratch))
        return running[-1]

    yield start
    for one in running:
        one.process.kill()
        one.process.wait()
        for pid in one.members():
            os.kill(pid, signal.SIGKILL)
        assert one.process.stdout is not None
        one.process.stdout.close()
        shutil.rmtree(one.scratch, ignore_errors=True)


def is_refused_without_token(port: int) -> bool:
    import grpc
    from ray.serve.generated import serve_pb2, serve_pb2_grpc

    with grpc.insecure_channel(f"{LOOPBACK}:{port}") as channel, pytest.raises(grpc.RpcError) as refusal:
        serve_pb2_grpc.ASGIServiceStub(channel).HandleRequest(serve_pb2.ASGIRequest(), timeout=10)
    return bool(refusal.value.code() == grpc.StatusCode.UNAUTHENTICATED)


def test_a_port_that_is_taken_is_told_before_ray_starts(
    tiny_release: TinyRelease, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.gateway.start._is_connected", lambda: False)  # other tests share a Ray
    with socket.create_server((LOOPBACK, 0)) as server:
        port = server.getsockname()[1]
        with (
            pytest.raises(ConfigurationError, match=f"Port {port} of 127.0.0.1 is taken"),
            started(tiny_release.workspace.root.uri, port=port),
        ):
            pytest.fail("it started on a port that is taken")


def test_a_temporary_folder_whose_sockets_would_be_too_long_is_told(
    tiny_release: TinyRelease, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deep = tmp_path / ("d" * 40)
    deep.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(deep))
    with (
        pytest.raises(ConfigurationError, match="Set TMPDIR to a shorter one"),
        started(tiny_release.workspace.root.uri, port=free_ports(1)[0]),
    ):
        pytest.fail("it started where sockets cannot be")


@pytest.mark.slow
@pytest.mark.ray
def test_it_listens_on_loopback_mends_a_killed_replica_and_leaves_nothing_behind(
    launch: Callable[[], Running],
) -> None:
    running = launch()
    with Client(f"http://{LOOPBACK}:{running.port}", max_retries=0) as sonder:
        eventually(sonder.is_ready, "ready")
        eventually(lambda: "degraded" not in sonder.profile("user-1", fresh=True), "every stage answers in time")

        listeners = running.listeners()
        assert (LOOPBACK, running.port) in [(address, port) for _, address, port in listeners]
        open_to_all = [(pid, port) for pid, address, port in listeners if address not in (LOOPBACK, "::ffff:127.0.0.1")]
        replicas = {running.replica_of(name) for name in ("gateway", "refresh", *STAGES)}
        assert {pid for pid, _ in open_to_all} <= replicas  # docs/decisions/0003: Ray's ports between replicas
        assert all(is_refused_without_token(port) for _, port in open_to_all)

        killed = running.replica_of("scoring")
        assert killed is not None
        os.kill(killed, signal.SIGKILL)
        assert sonder.profile("user-1", fresh=True)["scores"] == sonder.profile("user-1")["scores"]
        eventually(lambda: "degraded" not in sonder.profile("user-1", fresh=True), "scoring is back")
        assert running.replica_of("scoring") not in (killed, None)

    os.kill(running.process.pid, signal.SIGINT)
    assert running.process.wait(timeout=120) == 0
    eventually(lambda: running.members() == {}, "no process left")
    assert [path for path in running.scratch.iterdir() if path.name.startswith("sonder-")] == []
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"http://{LOOPBACK}:{running.port}/readyz", trust_env=False)


@pytest.mark.slow
@pytest.mark.ray
def test_who_hangs_up_takes_nothing_from_the_answers_of_others(launch: Callable[[], Running]) -> None:
    """Requests that arrive together are one batch, which Ray would count into the request that began it."""
    running = launch()
    with Client(f"http://{LOOPBACK}:{running.port}", max_retries=0) as sonder:
        eventually(sonder.is_ready, "ready")
        eventually(lambda: "degraded" not in sonder.profile("user-1", fresh=True), "every stage answers in time")
    url = f"http://{LOOPBACK}:{running.port}"
    paths = [f"/v1/users/user-{number}?fresh=true" for number in (1, 2, 3, 7)]

    async def scenario() -> list[dict[str, Any]]:
        answers = []
        async with httpx.AsyncClient(base_url=url, trust_env=False, timeout=10) as http:
            for turn in range(60):
                # After a batch of several the gateway waits for as many to come back: the last one begins the batch.
                await asyncio.gather(*(http.get(path) for path in paths))
                staying = []
                for path in paths[:2]:
                    staying.append(asyncio.create_task(http.get(path)))
                    await asyncio.sleep(0.0005)
                leaving = asyncio.create_task(http.get(paths[2]))
                await asyncio.sleep(0.0005 * (turn % 20))
                leaving.cancel()
                answers += [answer.raise_for_status().json() for answer in await asyncio.gather(*staying)]
                await asyncio.gather(leaving, return_exceptions=True)
        return answers

    assert [answer["degraded"] for answer in asyncio.run(scenario()) if "degraded" in answer] == []


@pytest.mark.slow
@pytest.mark.ray
def test_a_termination_while_it_starts_ends_what_was_started(launch: Callable[[], Running]) -> None:
    running = launch()
    eventually(lambda: running.replica_of("") is not None or running.process.poll() is not None, "a first replica")
    os.kill(running.process.pid, signal.SIGTERM)
    assert running.process.wait(timeout=120) == 128 + signal.SIGTERM
    eventually(lambda: running.members() == {}, "no process left")
    assert [path for path in running.scratch.iterdir() if path.name.startswith("sonder-")] == []


def test_where_nothing_becomes_ready_what_was_found_last_is_told() -> None:
    class Loading(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(503)
            self.end_headers()
            self.wfile.write(b"the store is of another release")

        def log_message(self, *_: object) -> None:
            """Not into the output of the tests."""

    with HTTPServer((LOOPBACK, 0), Loading) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://{LOOPBACK}:{server.server_port}"
        with pytest.raises(NotReady, match=r"not ready within 1 s, last: 503 the store is of another release"):
            wait_until_ready(url, timeout_s=1.0)
        server.shutdown()
    with pytest.raises(NotReady, match=r"not ready within 1 s, last: ConnectError: "):
        wait_until_ready(url, timeout_s=1.0)
