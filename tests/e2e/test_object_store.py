"""The main job with its workspace on S3 alone: built through kills, promoted, served, and taken over by another node.

Two nodes are two local folders; the first one is killed, and what it knew beyond the release is in what it shipped.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from sonder.core.config import load
from sonder.core.workspace import Workspace
from sonder.history.vocabulary import Vocabulary
from sonder.profiles.record import iso_time
from sonder.releases.registry import Registry
from tests.built import write_small_world
from tests.redis_server import free_port
from tests.s3_server import S3Server

pytestmark = pytest.mark.slow


class Installation:
    """A configuration whose workspace is on S3."""

    def __init__(self, folder: Path, server: S3Server) -> None:
        self.config_file, overrides = write_small_world(folder)
        self.overrides = (*overrides[:-1], f"workspace={server.uri(folder.name)}")
        self.workspace = Workspace.at(load(self.config_file, self.overrides).workspace)

    def command(self, *words: str, node: Path | None = None) -> list[str]:
        overrides = self.overrides if node is None else (*self.overrides, f"serving.local_dir={node}")
        sets = [argument for override in overrides for argument in ("--set", override)]
        return [sys.executable, "-m", "pipelines.cli", *words, "--config", str(self.config_file), *sets]

    def run(self, *words: str, node: Path | None = None) -> str:
        done = subprocess.run(self.command(*words, node=node), capture_output=True, text=True, timeout=900)
        assert done.returncode == 0, done.stderr
        return done.stdout + done.stderr

    def kill_when(self, is_time: Callable[[], bool]) -> None:
        """Start a build, and SIGKILL all of its processes when it is time."""
        with subprocess.Popen(self.command("build"), start_new_session=True, stderr=subprocess.DEVNULL) as process:
            until(is_time, 600, process)
            kill_all(process.pid)

    @contextmanager
    def served(self, node: Path, *, port: int) -> Iterator[subprocess.Popen[bytes]]:
        command = self.command("serve", "--port", str(port), node=node)
        with subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL) as process:
            try:
                until(lambda: is_ready(port), 300, process)
                yield process
            finally:
                if process.poll() is None:
                    process.send_signal(signal.SIGTERM)
                    process.wait(120)


def until(is_time: Callable[[], bool], within_s: float, process: subprocess.Popen[Any] | None = None) -> None:
    waiting, deadline = threading.Event(), time.monotonic() + within_s
    while not is_time():
        assert process is None or process.poll() is None, "it ended before"
        assert time.monotonic() < deadline, "it did not come"
        waiting.wait(0.1)


def is_ready(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/readyz", trust_env=False).status_code == 200
    except httpx.TransportError:
        return False


def test_the_main_job_needs_no_shared_disk(tmp_path: Path, s3_environment: S3Server) -> None:
    here = Installation(tmp_path, s3_environment)
    staging, registry = here.workspace.root / ".staging", Registry(here.workspace)
    here.kill_when(lambda: any("/checkpoint_" in name for name in (staging / "training").files()))
    assert registry.list() == []
    here.kill_when(lambda: any(not name.startswith(".") for name in here.workspace.releases.files()))  # publishing
    published = registry.list()  # none, unless the manifest was faster than the kill
    told = here.run("build")
    (release,) = registry.list()
    assert "report: done before, kept" in told or published
    assert not [name for name in staging.files() if name.startswith("build-") and not name.endswith(".lock")]

    here.run("release", "promote", release.id)
    profiles, items = here.workspace.release(release.id) / "profiles", here.workspace.release(release.id) / "items"
    part = next(name for name in profiles.files() if name.endswith(".parquet"))
    user, erased, forgotten = (profiles / part).read_table(["user_id"]).column(0).to_pylist()[:3]
    one, two = Vocabulary.load(items).item_ids.to_pylist()[:2]
    first, second = tmp_path / "node-1", tmp_path / "node-2"
    event = {"item_id": one, "action": "view", "timestamp": iso_time(release.as_of_us + 1)}
    port = free_port()
    url = f"http://127.0.0.1:{port}/v1"
    shipped = here.workspace.shipped_log
    with here.served(first, port=port) as process, httpx.Client(trust_env=False, timeout=30) as http:
        before = http.get(f"{url}/users/{user}").json()["num_events"]
        assert not http.get(f"{url}/users/{erased}").json()["is_cold"]
        events = [{**event, "user_id": user_id} for user_id in (user, erased, forgotten)]
        assert http.post(f"{url}/events", json={"events": events}).json()["accepted"] == 3
        until(lambda: http.get(f"{url}/users/{user}").json()["num_events"] == before + 1, 60)
        until(lambda: bool(shipped.files()), 60)
        told = http.delete(f"{url}/users/{erased}").json()
        assert (told["profile_removed"], told["events_removed"]) == (True, 1)
        kill_all(process.pid)  # the node is gone, and nobody looks at its disk again
        process.wait()
    assert told_of(here.workspace) == {user, forgotten}

    forgot = here.run("forget", forgotten, node=second)
    assert "1 online events" in forgot, forgot
    assert told_of(here.workspace) == {user}
    port = free_port()
    url = f"http://127.0.0.1:{port}/v1"
    with here.served(second, port=port), httpx.Client(trust_env=False, timeout=30) as http:
        until(lambda: http.get(f"{url}/users/{user}").json()["num_events"] == before + 1, 60)
        assert all(http.get(f"{url}/users/{user_id}").json()["is_cold"] for user_id in (erased, forgotten))
        assert http.get(f"{url}/users/{user}/recommendations?k=3").json()["recommendations"]
        later = {**event, "item_id": two, "user_id": user}
        assert http.post(f"{url}/events", json={"events": [later]}).json()["accepted"] == 1
    until(lambda: len({name.split("/")[0] for name in shipped.files()}) == 2, 10)  # a stop ships the rest


def told_of(workspace: Workspace) -> set[str]:
    """Users in what nodes have shipped."""
    shipped = workspace.shipped_log
    return {user for name in shipped.files() for user in (shipped / name).read_table().column("user_id").to_pylist()}


def kill_all(process: int) -> None:
    """SIGKILL a process and everything that it started."""
    parents = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:  # it has ended
                continue
    family = {process}
    while more := {child for child, parent in parents.items() if parent in family} - family:
        family |= more
    for member in family:
        with suppress(ProcessLookupError):
            os.kill(member, signal.SIGKILL)
