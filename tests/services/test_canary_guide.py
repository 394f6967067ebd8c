"""Every command of docs/canary.md, run as written in the order of the guide; only names and addresses are put in."""

from __future__ import annotations

import asyncio
import json
import re
import shlex
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import uvicorn
from fastapi import FastAPI
from typer.testing import CliRunner

from pipelines.cli import app as sonder_app
from services.gateway.proxy import free_ports
from sonder.releases.registry import Registry
from tests.services.canary_gateway import Gateway

if TYPE_CHECKING:
    from conftest import Served, TinyRelease

TEXT = (Path(__file__).parents[2] / "docs" / "canary.md").read_text(encoding="utf-8")
WRITTEN = "http://127.0.0.1:8000"


def blocks() -> list[list[str]]:
    return [block.strip().splitlines() for block in re.findall(r"^```\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)]


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


def test_the_guide_is_run_as_written(
    own_served: Served, another_release: Callable[[TinyRelease, str], str], tmp_path: Path
) -> None:
    for name in ("release-2", "release-3"):
        another_release(own_served.release, name)
    config = tmp_path / "sonder.yaml"
    config.write_text(f"workspace: {tmp_path / 'workspace'}\nevents: {{path: events.csv}}\n", encoding="utf-8")
    gateway = Gateway(own_served)
    asyncio.run(gateway.settle())
    canary, ramp, shadow, side_by_side = blocks()
    try:
        with listening(gateway.app) as url:

            def run(commands: list[str], **names: str) -> list[str]:
                told = []
                for command in commands:
                    for name, release in names.items():
                        command = re.sub(rf"\b{name}\b", release, command)
                    told.append(answer(command.replace(WRITTEN, url), config))
                    asyncio.run(gateway.settle())
                return told

            assert "release-2 is current" in run(canary, RELEASE="release-2")[-1]
            assert "is stopped" in run(ramp, RELEASE="release-3")[-1]
            assert "unseen" in run(shadow, RELEASE="release-3")[0]
            run(["sonder canary stop"])
            *_, by_query, by_header, release, _ = run(side_by_side, RELEASE="release-3", OLD="release-2")
            assert [json.loads(one)["release"] for one in (by_query, by_header)] == ["release-2"] * 2
            assert (json.loads(release)["release"], json.loads(release)["also"]) == ("release-3", ["release-2"])
            current = Registry(gateway.workspace).current()
            assert current is not None
            assert current.release == "release-3"
    finally:
        gateway.close()


def answer(command: str, config: Path) -> str:
    program, *arguments = shlex.split(command)
    if program == "curl":
        shown = subprocess.run(
            [program, "--silent", "--show-error", "--fail-with-body", *arguments],
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        return shown.stdout
    assert program == "sonder"
    done = CliRunner().invoke(sonder_app, [*arguments, "-c", str(config)], catch_exceptions=False)
    assert done.exit_code == 0, (command, done.output)
    return done.output


@pytest.mark.parametrize("link", sorted(set(re.findall(r"\]\((\.\./[^)#]+)\)", TEXT))))
def test_every_file_that_the_guide_names_is_there(link: str) -> None:
    assert (Path(__file__).parents[2] / "docs" / link).exists()
