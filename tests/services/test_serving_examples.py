"""The examples of docs/serving.md, run as written against a gateway over HTTP; only where it listens is put in."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest
import uvicorn
from fastapi import FastAPI

from services.gateway.doors import Doors
from services.gateway.http import create_app
from services.gateway.proxy import free_ports
from services.gateway.running import RunningExperiments
from sonder.core.keys import create_key
from sonder.experiments.registry import Experiments
from sonder.experiments.specification import Experiment

if TYPE_CHECKING:
    from conftest import Served

ROOT = Path(__file__).parents[2]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", flags=re.MULTILINE | re.DOTALL)
EXPERIMENT = Experiment.model_validate(
    {
        "name": "mixed-lists",
        "hypothesis": "lists of several interests are bought from more often",
        "arms": [{"name": "control"}, {"name": "mixed", "ranking": {"source": "interests"}}],
        "metrics": [{"name": "buyers", "kind": "conversion", "action": "buy", "within_days": 7}],
        "primary": "buyers",
        "minimum_effect": 0.05,
    }
)
WRITTEN, WRITTEN_BEYOND = "http://127.0.0.1:8000", "http://HOST:8000"


def blocks(language: str) -> list[str]:
    text = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")
    return [content for kind, content in FENCE.findall(text) if kind == language]


def curls() -> list[str]:
    """Commands that start with curl; one goes on while a quote is open."""
    found: list[str] = []
    for block in blocks(""):
        lines = iter(block.splitlines())
        for line in lines:
            while line.count("'") % 2:
                line += "\n" + next(lines)
            if line.startswith("curl "):
                found.append(line)
    return found


@contextmanager
def listening(app: FastAPI) -> Iterator[str]:
    (port,) = free_ports(1)
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="error", lifespan="off"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join()


def answered(command: str, folder: Path | None = None) -> tuple[int, str]:
    shown = subprocess.run(
        [*shlex.split(command), "--silent", "--show-error", "--write-out", "\n%{http_code}"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
        cwd=folder,
    )
    body, status = shown.stdout.rsplit("\n", 1)
    return int(status), body


def running_experiment(served: Served) -> RunningExperiments:
    """What a gateway knows of the one experiment of the workspace."""
    workspace = served.release.workspace
    Experiments(workspace).start(EXPERIMENT, by="a test", reason="")
    running = RunningExperiments(workspace)
    running.look(served.engine)
    running.lives(served.engine, {})
    return running


def test_every_curl_is_answered_with_success(own_served: Served, tmp_path: Path) -> None:
    seeds = json.dumps(own_served.release.user_ids[:10])
    app = create_app(own_served.engine)
    following = SimpleNamespace(experiments=running_experiment(own_served), erase=own_served.engine.erase)
    app.state.serving = following
    with listening(app) as url:
        for command in curls():
            if WRITTEN in command:
                status, body = answered(
                    command.replace(WRITTEN, url)
                    .replace("SEEDS", seeds)
                    .replace("ITEM", "item-3")
                    .replace("EXPERIMENT", EXPERIMENT.name)
                    .replace("CATEGORY", "shop"),
                    tmp_path,
                )
                assert 200 <= status < 300, (command, body)


def test_a_key_opens_what_it_is_shown_to_open(own_served: Served) -> None:
    keys = own_served.release.workspace.keys
    key = create_key(keys, "ads", scopes=["read"], fields=["segments", "audiences"], rate=200)
    with listening(create_app(own_served.engine, doors=Doors(keys))) as url:
        told = [answered(c.replace(WRITTEN_BEYOND, url).replace("KEY", key)) for c in curls() if WRITTEN_BEYOND in c]
        assert [status for status, _ in told] == [200]
        assert answered(f"curl {url}/v1/users/u1/scores -H 'authorization: Bearer {key}'")[0] == 403


def test_every_route_has_an_example() -> None:
    paths = json.loads((ROOT / "docs" / "openapi.json").read_text(encoding="utf-8"))["paths"]
    shown = [re.sub(r"\?.*", "", token) for command in curls() for token in shlex.split(command) if "http" in token]
    for path in paths:
        pattern = re.compile(re.sub(r"\{\w+\}", "[^/]+", path.replace(".", r"\.")) + "$")
        assert any(pattern.search(url) for url in shown), path


def test_the_python_example_runs_as_written(own_served: Served, capsys: pytest.CaptureFixture[str]) -> None:
    (example,) = blocks("python")
    with listening(create_app(own_served.engine)) as url:
        exec(compile(example.replace(WRITTEN, url), "docs/serving.md", "exec"), {})
    assert capsys.readouterr().out.splitlines()[1:] == ["u1 True", "u2 True", "2"]
