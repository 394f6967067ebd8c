"""A gateway over a workspace on S3: what it needs lies on its node's disk, and another node knows what was shipped."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pipelines.forget import forget
from services.gateway.doors import Asked, Doors
from services.gateway.exposing import ExposureLog
from sonder.core.config import SonderConfig
from sonder.core.errors import InvalidRequest
from sonder.core.keys import create_key, revoke_key
from sonder.core.workspace import Workspace
from sonder.events.erasure import read_erasures
from sonder.experiments.exposure_files import read_exposures
from sonder.experiments.registry import Experiments
from sonder.experiments.specification import Experiment
from sonder.experiments.versions import Running
from sonder.profiles.log_shipping import LogShipper
from sonder.profiles.record import iso_time
from sonder.releases.registry import Registry
from tests.s3_server import S3Server

if TYPE_CHECKING:
    from conftest import Served, TinyRelease

    Serving = Callable[..., AbstractContextManager[Served]]


@pytest.fixture
def release(s3_environment: S3Server, tmp_path: Path, release_at: Callable[..., TinyRelease]) -> TinyRelease:
    return release_at(s3_environment.uri(f"serving-{os.urandom(4).hex()}"), tmp_path / "node-1")


@pytest.fixture
def served(release: TinyRelease, serving: Serving) -> Iterator[Served]:
    with serving(release, writable=True) as opened:
        yield opened


def test_a_second_node_takes_over_what_the_first_one_shipped(
    served: Served, release: TinyRelease, serving: Serving, tmp_path: Path
) -> None:
    workspace = release.workspace
    at = iso_time(release.as_of_us + 1)
    events = [{"user_id": user, "item_id": "item-1", "action": "buy", "timestamp": at} for user in ("user-1", "user-2")]
    assert served.request("POST", "/v1/events", json={"events": events}).json()["accepted"] == 2
    before = served.get("/v1/users/user-1?fresh=true")["num_events"]
    assert LogShipper(workspace, served.log).ship() == 2
    told = served.request("DELETE", "/v1/users/user-2").json()
    assert (told["profile_removed"], told["events_removed"]) == (True, 1)

    second = replace(release, workspace=Workspace.at(workspace.root.uri, str(tmp_path / "node-2")))
    with serving(second, writable=True) as elsewhere:
        assert LogShipper(second.workspace, elsewhere.log).adopt() == 1
        assert elsewhere.get("/v1/users/user-1?fresh=true")["num_events"] == before
        assert elsewhere.get("/v1/users/user-2?fresh=true")["cold_reason"] == "unknown_user"
        assert elsewhere.get("/v1/users/user-3")["is_cold"] is False
        again = elsewhere.request("POST", "/v1/events", json={"events": events[:1]}).json()
        assert (again["accepted"], again["duplicates"]) == (0, 1)


def test_an_erasure_is_heard_of_by_a_gateway_that_did_not_make_it(served: Served, release: TinyRelease) -> None:
    config = SonderConfig.model_validate(
        {"workspace": release.workspace.root.uri, "events": {"path": "unused"}, "serving": {"local_dir": "unused"}}
    )
    similar = served.get("/v1/users/user-1/similar?k=2")["similar"]
    gone = similar[0]["user_id"]
    with pytest.MonkeyPatch.context() as place:
        place.chdir(release.workspace.local.parent)
        told = forget(config, gone)
    assert any(where.startswith("releases/") for where in told.remaining)
    assert len(read_erasures(release.workspace.erasures)) == 1
    deadline = time.monotonic() + 20
    while gone in str(served.get("/v1/users/user-1/similar?k=2")):
        assert time.monotonic() < deadline
        time.sleep(0.2)


def test_keys_and_switches_on_an_object_store_are_heard_of(release: TinyRelease) -> None:
    workspace = release.workspace
    secret = create_key(workspace.keys, "reader", scopes=["read"])
    doors = Doors(workspace.keys)
    asked = Asked("GET", "/v1/users/user-1")
    assert asyncio.run(doors.refusal(secret, asked)) is None
    revoke_key(workspace.keys, "reader")
    deadline = time.monotonic() + 20
    while asyncio.run(doors.refusal(secret, asked)) is None:
        assert time.monotonic() < deadline
        time.sleep(0.2)
    doors.close()
    assert Registry(workspace).promote(release.release, reason="again").reason == "the only one"


def test_experiments_and_their_exposures_lie_on_s3_and_an_erasure_finds_them(
    served: Served, release: TinyRelease
) -> None:
    workspace = release.workspace
    metric = {"name": "buyers", "kind": "conversion", "action": "buy", "within_days": 7}
    arms = [{"name": "control"}, {"name": "treatment", "ranking": {"source": "interests"}}]
    about = {"name": "first", "hypothesis": "h", "arms": arms, "metrics": [metric], "primary": "buyers"}
    spec = Experiment.model_validate({**about, "minimum_effect": 0.1})
    started = Experiments(workspace).start(spec, by="a test", reason="")
    assert Running.read(workspace).find("first") == started
    with pytest.raises(InvalidRequest, match="running"):
        Experiments(workspace).start(spec, by="a test", reason="")
    log = ExposureLog(workspace, "g1")
    for user in ("user-1", "user-2"):
        log.expose("first", 1, "control", user, release="release-1", surface="recommendations")
    asyncio.run(log.close())
    assert read_exposures(workspace.experiments, "first").height == 2
    assert served.request("DELETE", "/v1/users/user-2").json()["exposures_removed"] == 1
    assert read_exposures(workspace.experiments, "first")["user_id"].to_list() == ["user-1"]
