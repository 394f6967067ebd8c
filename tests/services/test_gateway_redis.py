"""The gateway over a Redis server, beside the same gateway over the embedded store."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from services.gateway.engine import Engine
from services.gateway.opening import open_engine
from sonder.core.errors import NotReady
from sonder.profiles.online_log import OnlineLog
from sonder.releases.artefacts import Release
from tests.redis_server import free_port, running_redis
from tests.services.conftest import Served, TinyRelease


@pytest.fixture
def networked(tiny_release: TinyRelease, served: Served, tmp_path: Path) -> Iterator[Served]:
    """The stages of `served` behind an engine whose store is on a server."""
    with running_redis() as url:
        engine = networked_engine(tiny_release, served, url, tmp_path)
        yield Served(tiny_release, served.handles, engine, served.store, served.log)
        engine.close()


def networked_engine(release: TinyRelease, served: Served, url: str, folder: Path) -> Engine:
    opened, log = Release.open(release.workspace, release.release), OnlineLog(folder / "log")
    return open_engine(opened, served.engine._stages, store_url=url, log=log)


def test_answers_are_those_of_the_embedded_store(served: Served, networked: Served) -> None:
    user_ids = [*networked.release.user_ids, networked.release.shown_only, "nobody"]
    ages = {"age_ms": 0}
    for path in ("/v1/users/user-1", "/v1/users/nobody", "/v1/users/user-2/recommendations?k=3"):
        assert networked.get(path) | ages == served.get(path) | ages
    asked = {"json": {"user_ids": user_ids}}
    here, there = (one.request("POST", "/v1/users:batchGet", **asked).json()["profiles"] for one in (served, networked))
    assert [found | ages for found in there] == [found | ages for found in here]
    assert networked.get("/v1/users/user-1?fresh=true").get("degraded") is None


def test_a_server_that_is_away_is_a_503_and_not_a_world_of_strangers(
    tiny_release: TinyRelease, served: Served, tmp_path: Path
) -> None:
    port = free_port()
    with running_redis(port) as url:
        engine = networked_engine(tiny_release, served, url, tmp_path)
        networked = Served(tiny_release, served.handles, engine, served.store, served.log)
        assert networked.get("/v1/users/user-1")["is_cold"] is False
    answer = networked.request("GET", "/v1/users/user-1")
    assert answer.status_code == 503
    assert f"redis://127.0.0.1:{port}/0" in answer.json()["detail"]
    engine.close()


def test_a_server_that_came_back_empty_is_told_to_whoever_asks(
    tiny_release: TinyRelease, served: Served, tmp_path: Path
) -> None:
    port = free_port()
    with running_redis(port) as url:
        engine = networked_engine(tiny_release, served, url, tmp_path)
    with running_redis(port), pytest.raises(NotReady, match="no longer holds release"):
        engine.profile("user-1")
    engine.close()
