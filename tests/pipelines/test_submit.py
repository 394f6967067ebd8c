"""The same build as a Ray job: submitted for real to a running local cluster, followed, and attached to."""

from __future__ import annotations

import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest

from pipelines.submit import absolute_paths, submit
from sonder.core.config import load
from sonder.core.errors import ConfigurationError, StageUnavailable
from sonder.core.workspace import Workspace
from sonder.releases.registry import Registry
from tests.built import write_small_world


def test_a_job_gets_absolute_paths_and_nothing_else_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "sonder.yaml"
    file.write_text("workspace: w\nevents: {path: [a.csv, 's3://b/c.csv', 'package:lifetimes']}\n", encoding="utf-8")
    content = absolute_paths(load(file))
    assert content["workspace"] == str(tmp_path / "w")
    assert content["events"]["path"] == [str(tmp_path / "a.csv"), "s3://b/c.csv", "package:lifetimes"]
    assert {**content, "workspace": "w", "events": None} == {**load(file).model_dump(mode="json"), "events": None}


def test_a_command_that_is_no_job_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "sonder.yaml"
    file.write_text("events: {path: a.csv}\n", encoding="utf-8")
    with pytest.raises(ConfigurationError, match="one of build"):
        submit("serve", load(file), address="http://127.0.0.1:1", follow=False)


def test_no_cluster_is_one_clear_sentence(tmp_path: Path) -> None:
    file = tmp_path / "sonder.yaml"
    file.write_text("events: {path: a.csv}\n", encoding="utf-8")
    with pytest.raises(StageUnavailable, match="ray start --head"):
        submit("build", load(file), address="http://127.0.0.1:1", follow=False)


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A cluster of one node with ports, a folder and a token of its own: the machine may run another Ray."""
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", uuid.uuid4().hex)
    ray = str(Path(sys.executable).parent / "ray")
    port, dashboard, agent, client = free_ports(4)
    with tempfile.TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True) as folder:  # short, for socket paths
        start = [ray, "start", "--head", "--block", "--num-cpus=4", "--disable-usage-stats", f"--temp-dir={folder}",
                 f"--port={port}", f"--ray-client-server-port={client}", "--object-store-memory=400000000",
                 "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}",
                 f"--dashboard-agent-listen-port={agent}"]  # fmt: skip
        with subprocess.Popen(start, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as head:
            try:
                wait_for_dashboard(f"http://127.0.0.1:{dashboard}", head)
                yield f"http://127.0.0.1:{dashboard}"
            finally:
                head.terminate()  # ends the processes that it started, and no others
                head.wait(timeout=60)


def submission(command: str, config_file: Path, overrides: Sequence[str], address: str) -> list[str]:
    """In a process of its own: Ray reads how to authenticate when it is imported."""
    sets = [argument for override in overrides for argument in ("--set", override)]
    return [sys.executable, "-m", "pipelines.cli", "submit", command, "--config", str(config_file), *sets,
            "--address", address]  # fmt: skip


@pytest.mark.slow
def test_a_submitted_build_ends_as_a_release_in_the_same_workspace(tmp_path: Path, cluster: str) -> None:
    config_file, overrides = write_small_world(tmp_path / "world")
    command = submission("build", config_file, overrides, cluster)
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as first:
        assert first.stdout is not None
        submitted = next(line for line in first.stdout if line.startswith("Submitted "))
        second = subprocess.run([*command, "--no-follow"], capture_output=True, text=True, timeout=120, check=True)
        log = first.stdout.read()
    job = submitted.removeprefix("Submitted ").strip(".\n")
    assert job.startswith("sonder-build-")
    assert second.stdout.startswith(f"{job} is running already: attached to it.")
    assert first.returncode == 0, log
    assert "train: epoch 2" in log
    assert log.endswith(f"{job} succeeded.\n")
    (release,) = Registry(Workspace.at(load(config_file, overrides).workspace)).list()
    assert release.id in log


@pytest.mark.slow
def test_a_submitted_command_that_fails_says_why_and_is_started_anew_the_next_time(
    tmp_path: Path, cluster: str
) -> None:
    config_file, _ = write_small_world(tmp_path / "world")
    nowhere = [f"events.path={tmp_path / 'nowhere.csv'}", f"workspace={tmp_path / 'w'}"]
    jobs = []
    for _ in range(2):
        command = submission("prepare", config_file, nowhere, cluster)
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 1, done.stdout + done.stderr
        assert "Configuration is wrong. " in done.stdout
        assert "nowhere.csv" in done.stdout
        assert "Traceback" not in done.stdout
        jobs.append(done.stdout.splitlines()[0].removeprefix("Submitted ").removesuffix("."))
    assert jobs[1] == f"{jobs[0]}-2"


@pytest.mark.slow
def test_a_cluster_that_wants_a_token_is_told_in_one_sentence(
    tmp_path: Path, cluster: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "sonder.yaml"
    file.write_text("events: {path: a.csv}\n", encoding="utf-8")
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    command = submission("build", file, (), cluster)
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1
    assert "asks for a token" in done.stderr
    assert "Traceback" not in done.stderr


def wait_for_dashboard(address: str, head: subprocess.Popen[bytes]) -> None:
    with httpx.Client(base_url=address, trust_env=False) as http:
        for _ in range(240):
            assert head.poll() is None, f"ray start ended with {head.returncode}"
            try:
                if http.get("/api/version").status_code in (200, 401):  # it answers those without a token too
                    return
            except httpx.TransportError:
                pass
            time.sleep(0.5)
    pytest.fail(f"the dashboard at {address} did not come up")


def free_ports(count: int) -> list[int]:
    with ExitStack() as held:
        probes = [held.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [probe.getsockname()[1] for probe in probes]
