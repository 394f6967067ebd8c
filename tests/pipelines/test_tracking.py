"""MLflow is told of a release: once, whole, only when asked, and its absence fails no build."""

from __future__ import annotations

import importlib.util
import logging
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner

import pipelines.tracking
from pipelines.cli import app
from pipelines.tracking import metrics_of, parameters_of, require_client, track, track_build
from sonder.core.config import SonderConfig, load
from sonder.core.errors import ConfigurationError, NotFound, StageUnavailable
from sonder.releases.artefacts import Release
from tests.services.conftest import RELEASE, TinyRelease, build_tiny_release

SERVER = Path(__file__).parents[2] / ".bench" / "mlflow" / "bin" / "mlflow"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyRelease:
    """With a report beside what a build puts there."""
    tiny = build_tiny_release(tmp_path_factory.mktemp("tracked") / "workspace")
    folder = tiny.workspace.release(RELEASE)
    (folder / "report" / "index.html").write_bytes(b"<title>how good it is</title>")
    (folder / "report" / "metrics.json").write_json({"retrieval.encoder.hr_at_10": 0.5})
    return tiny


def config_of(tiny: TinyRelease, uri: str | None) -> SonderConfig:
    return SonderConfig.model_validate(
        {
            "workspace": tiny.workspace.root.path,
            "events": {"path": "events.csv"},
            "tracking": {"mlflow": uri, "experiment": "shop"},
        }
    )


@pytest.fixture
def file_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A folder in the place of a server: MLflow keeps it for who asks for it."""
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    return (tmp_path / "mlruns").as_uri()


def runs_at(uri: str) -> list[Any]:
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name("shop")
    assert experiment is not None
    return list(client.search_runs([experiment.experiment_id]))


def downloaded(uri: str, run_id: str, folder: Path) -> dict[str, bytes]:
    from mlflow import MlflowClient

    MlflowClient(tracking_uri=uri).download_artifacts(run_id, "", str(folder))
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def check_told_once_and_whole(tiny: TinyRelease, uri: str, folder: Path) -> None:
    config = config_of(tiny, uri)
    first = track(config, RELEASE)
    assert not first.was_there
    assert track(config, RELEASE) == (first.run_id, True)
    (run,) = runs_at(uri)
    assert run.info.run_name == RELEASE
    assert run.info.status == "FINISHED"
    assert run.data.params["encoder.dim"] == "8"
    assert "buy_7d" in run.data.params["scores"]
    assert run.data.metrics == {"retrieval.encoder.hr_at_10": 0.5, "rows.profiles": 25.0}
    assert run.data.tags["sonder.release"] == RELEASE
    assert run.data.tags["sonder.snapshot"] == "snapshot-1"
    folder.mkdir()
    files = downloaded(uri, first.run_id, folder)
    assert set(files) == {"manifest.json", "report/index.html", "report/metrics.json"}
    assert files["manifest.json"] == (tiny.workspace.release(RELEASE) / "manifest.json").read_bytes()


def test_a_release_is_one_run_with_all_that_it_is(tiny: TinyRelease, file_store: str, tmp_path: Path) -> None:
    check_told_once_and_whole(tiny, file_store, tmp_path / "artefacts")


def test_a_run_that_was_cut_short_is_gone_on_with(
    tiny: TinyRelease, file_store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(pipelines.tracking, "_log_files", _fails)
        with pytest.raises(StageUnavailable, match="did not take release"):
            track(config_of(tiny, file_store), RELEASE)
    (cut,) = runs_at(file_store)
    assert cut.info.status == "RUNNING"
    tracked = track(config_of(tiny, file_store), RELEASE)
    assert tracked == (cut.info.run_id, False)
    (run,) = runs_at(file_store)
    assert run.info.status == "FINISHED"


def _fails(*_: Any) -> None:
    raise ConnectionResetError("the server went away")


def test_nothing_is_told_unless_asked_and_mlflow_is_then_not_even_needed(
    tiny: TinyRelease, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "mlflow" else find(name))
    monkeypatch.setattr(pipelines.tracking, "track", _fails)
    require_client(config_of(tiny, None))
    track_build(config_of(tiny, None), RELEASE)
    with pytest.raises(ConfigurationError, match=r"mlflow is not installed.*pip install 'sonder\[mlflow\]'"):
        require_client(config_of(tiny, "http://127.0.0.1:1"))


def test_a_server_that_is_away_fails_no_build_but_the_command_says_so(
    tiny: TinyRelease, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    config = config_of(tiny, "http://127.0.0.1:1")
    with caplog.at_level(logging.WARNING, logger="sonder"):
        track_build(config, RELEASE)
    assert f"Later: sonder track {RELEASE}" in caplog.text
    with pytest.raises(StageUnavailable, match="a tracking server that answers"):
        track(config, RELEASE)
    with pytest.raises(NotFound):
        track(config, "nobody")
    file = tmp_path / "sonder.yaml"
    file.write_text(f"workspace: {tiny.workspace.root}\nevents: {{path: events.csv}}\n", encoding="utf-8")
    told = CliRunner().invoke(app, ["track", "-c", str(file)])
    assert isinstance(told.exception, ConfigurationError)
    assert "tracking.mlflow" in str(told.exception)


def test_the_command_tells_the_served_release(tiny: TinyRelease, file_store: str, tmp_path: Path) -> None:
    file = tmp_path / "sonder.yaml"
    file.write_text(f"workspace: {tiny.workspace.root}\nevents: {{path: events.csv}}\n", encoding="utf-8")
    command = ["track", "-c", str(file), "--set", f"tracking.mlflow={file_store}"]
    assert "is written" in CliRunner().invoke(app, command, catch_exceptions=False).output
    assert "was there before" in CliRunner().invoke(app, command, catch_exceptions=False).output


def test_parameters_are_flat_text_and_metrics_finite_numbers(tiny: TinyRelease) -> None:
    told = parameters_of({"a": {"b": 1, "c": None, "d": [{"e": 2}]}, "odd name (x)": True, "long": "x" * 7_000})
    assert told == {"a.b": "1", "a.d": '[{"e": 2}]', "odd name _x_": "True", "long": "x" * 6_000}
    release = Release.open(tiny.workspace, RELEASE)
    release.manifest.metrics.update({"nan": float("nan"), "text": "good", "is_good": True})
    assert set(metrics_of(release)) == {"retrieval.encoder.hr_at_10", "rows.profiles"}


def test_a_password_in_the_configuration_is_refused_without_repeating_it(tmp_path: Path) -> None:
    file = tmp_path / "sonder.yaml"
    file.write_text("events: {path: a.csv}\ntracking: {mlflow: 'https://me:hush@host'}\n", encoding="utf-8")
    with pytest.raises(ConfigurationError, match="MLFLOW_TRACKING_PASSWORD") as refused:
        load(file)
    assert "hush" not in str(refused.value)


def test_who_is_told_changes_no_build(tiny: TinyRelease) -> None:
    assert config_of(tiny, None).digest() == config_of(tiny, "http://127.0.0.1:1").digest()


# -- a real server -----------------------------------------------------------------------------------------------------


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """MLflow's own server on a free loopback port, runs in SQLite, artefacts through the server."""
    if not SERVER.is_file():
        pytest.skip(f"no MLflow server at {SERVER}: `make {SERVER.relative_to(SERVER.parents[3])}` installs one")
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    command = [str(SERVER), "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1",
               "--backend-store-uri", f"sqlite:///{tmp_path / 'mlflow.db'}",
               "--artifacts-destination", str(tmp_path / "artifacts")]  # fmt: skip
    environment = {**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true", "PYTHONPATH": ""}
    with (tmp_path / "server.log").open("wb") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=log, cwd=tmp_path, env=environment, start_new_session=True
        )
    try:
        _wait_for(f"http://127.0.0.1:{port}", process, tmp_path / "server.log")
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(process.pid, 15)  # the server and its workers
        process.wait(timeout=60)


def _wait_for(address: str, process: subprocess.Popen[bytes], log: Path) -> None:
    with httpx.Client(base_url=address, trust_env=False) as http:
        for _ in range(480):
            assert process.poll() is None, log.read_text(encoding="utf-8")[-3000:]
            try:
                if http.get("/health").status_code == 200:
                    return
            except httpx.TransportError:
                pass
            time.sleep(0.5)
    pytest.fail(f"MLflow did not answer: {log.read_text(encoding='utf-8')[-3000:]}")


@pytest.mark.slow
def test_a_real_server_is_told_once_and_whole(tiny: TinyRelease, server: str, tmp_path: Path) -> None:
    check_told_once_and_whole(tiny, server, tmp_path / "artefacts")
