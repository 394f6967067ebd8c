"""A build that is killed in the middle publishes nothing, and the same command goes on where it stopped."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sonder.core.config import load
from sonder.core.workspace import Workspace
from sonder.releases.registry import Registry
from tests.built import write_small_world
from tests.hanging import PROCESS_HANGS_AFTER_S

pytestmark = pytest.mark.slow


def sonder_build(config_file: Path, overrides: tuple[str, ...]) -> subprocess.Popen[str]:
    sets = [argument for override in overrides for argument in ("--set", override)]
    command = [sys.executable, "-m", "pipelines.cli", "build", "--config", str(config_file), *sets]
    return subprocess.Popen(command, start_new_session=True, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def kill_when(process: subprocess.Popen[str], appears: str, workspace: Path) -> None:
    """SIGKILL the whole session of the build as soon as a file of that name exists in the staging area."""
    deadline = time.monotonic() + PROCESS_HANGS_AFTER_S
    while not list(workspace.glob(f".staging/**/{appears}")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


@pytest.mark.parametrize("appears", ["train.json", "segment.json"])
def test_a_killed_build_publishes_nothing_and_resumes(tmp_path: Path, appears: str) -> None:
    config_file, overrides = write_small_world(tmp_path)
    workspace = Workspace.at(load(config_file, overrides).workspace)
    kill_when(sonder_build(config_file, overrides), appears, Path(workspace.root.path))
    assert Registry(workspace).list() == []
    marker = next(Path(workspace.root.path).glob(f".staging/**/{appears}"))
    finished_at = marker.stat().st_mtime_ns

    again = sonder_build(config_file, overrides)
    _, told = again.communicate(timeout=PROCESS_HANGS_AFTER_S)
    assert again.returncode == 0, told
    assert f"{appears.removesuffix('.json')}: done before, kept" in told
    assert finished_at < time.time_ns()
    assert len(Registry(workspace).list()) == 1
