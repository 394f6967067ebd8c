"""`sonder store`, on the tiny release of the gateway's tests."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from pipelines.cli import app
from sonder.core.errors import InvalidRequest
from tests.redis_server import running_redis
from tests.services.conftest import NUM_USERS, RELEASE, build_tiny_release


@pytest.fixture
def config(tmp_path: Path) -> Path:
    build_tiny_release(tmp_path / "workspace")
    file = tmp_path / "sonder.yaml"
    file.write_text(f"workspace: {tmp_path / 'workspace'}\nevents: {{path: events.csv}}\n", encoding="utf-8")
    return file


def test_a_store_is_loaded_where_the_configuration_says_and_the_current_one_is_not_dropped(config: Path) -> None:
    runner = CliRunner()
    told = f"The online store of {RELEASE} holds {NUM_USERS + 1} profiles in"
    embedded = runner.invoke(app, ["store", "load", "-c", str(config)], catch_exceptions=False)
    assert told in embedded.output
    assert (config.parent / "workspace" / "store" / RELEASE / "data.mdb").is_file()
    with running_redis() as url:
        on_server = ["-c", str(config), "--set", f"serving.store={url}"]
        assert told in runner.invoke(app, ["store", "load", RELEASE, *on_server], catch_exceptions=False).output
        refused = runner.invoke(app, ["store", "drop", RELEASE, *on_server])
        assert isinstance(refused.exception, InvalidRequest)
