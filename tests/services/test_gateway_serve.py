"""The application on Ray Serve: one start, then what only the real thing can show."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import httpx
import pytest
import yaml
from ray import serve

from services.gateway.proxy import free_ports
from services.gateway.rpc.sonder_pb2 import GetProfileRequest, Profile
from services.gateway.start import APPLICATION, started
from sonder.client import Client
from sonder.core.errors import InvalidRequest
from sonder.profiles.record import iso_time
from sonder.releases.registry import Registry

if TYPE_CHECKING:
    from conftest import Served, TinyRelease

pytestmark = pytest.mark.ray
CONFIG = Path(__file__).parents[2] / "infra" / "serve" / "sonder.yaml"
GRPC: list[int] = []  # the port, once it is known
VOLATILE = {"age_ms", "computed_at"}


@pytest.fixture(scope="module")
def tiny_release(new_release: Callable[[], TinyRelease]) -> TinyRelease:
    """One of this module's own: its events are not those of other tests."""
    return new_release()


@pytest.fixture(scope="module")
def url(ray_session: None, tiny_release: TinyRelease) -> Iterator[str]:
    http, rpc = free_ports(2)
    GRPC.append(rpc)
    with started(tiny_release.workspace.root.uri, port=http, grpc={"host": "127.0.0.1", "port": rpc}) as served_at:
        yield served_at
    serve.shutdown()


def without_drivers(answer: Any) -> dict[str, Any]:
    """Drivers are not computed with a fresh profile."""
    return {**answer, "scores": [{**score, "drivers": None} for score in answer["scores"]]}


def settled(answer: Any) -> dict[str, Any]:
    return {name: value for name, value in answer.items() if name not in VOLATILE}


def test_the_deployments_are_those_of_the_config_file_and_all_healthy(url: str) -> None:
    application = serve.status().applications[APPLICATION]
    (written,) = yaml.safe_load(CONFIG.read_text(encoding="utf-8"))["applications"]
    healthy = {name for name, deployment in application.deployments.items() if deployment.status == "HEALTHY"}
    assert healthy == {entry["name"] for entry in written["deployments"]}


def test_every_answer_is_the_one_that_the_same_code_gives_without_serve(url: str, served: Served) -> None:
    users = ["user-1", "user-7", "k%C3%A4ufer%2Fonly%20shown", "nobody"]
    parts = [
        "",
        "/embedding",
        "/interests",
        "/affinities",
        "/segments",
        "/scores",
        "/explanation",
        "/recommendations?k=5",
        "/similar",
    ]
    paths = [f"/v1/users/{user}{part}" for user in users for part in parts]
    with httpx.Client(base_url=url, trust_env=False) as http:
        for path in [*paths, "/v1/release", "/healthz", "/readyz"]:
            assert settled(http.get(path).raise_for_status().json()) == settled(served.get(path)), path


def test_grpc_is_answered_beside_http(url: str) -> None:
    with grpc.insecure_channel(f"127.0.0.1:{GRPC[0]}") as channel:
        read: Any = channel.unary_unary("/sonder.v1.Sonder/GetProfile", response_deserializer=Profile.FromString)
        answer = read(GetProfileRequest(user_id="user-1", fresh=True).SerializeToString(), timeout=20)
    with httpx.Client(base_url=url, trust_env=False) as http:
        assert answer.release == http.get("/v1/release").json()["release"]
        assert answer.num_events == http.get("/v1/users/user-1").json()["num_events"]


def test_behind_serve_an_answer_has_one_request_id_and_metrics_are_read(url: str) -> None:
    with httpx.Client(base_url=url, trust_env=False) as http:
        answer = http.get("/v1/users/user-1", headers={"x-request-id": "mine-1"})
        assert answer.headers.get_list("x-request-id") == ["mine-1"]
        measured = http.get("/metrics").raise_for_status().text
    assert 'sonder_request_seconds_count{method="GET",route="/v1/users/{user_id}",status="200"}' in measured


def test_a_fresh_profile_composed_by_the_deployments_equals_the_stored_one(url: str) -> None:
    with Client(url) as sonder:
        for user_id in ("user-1", "user-7", "nobody"):
            fresh = sonder.profile(user_id, fresh=True)
            assert settled(without_drivers(fresh)) == settled(without_drivers(sonder.profile(user_id)))


def test_the_client_reads_batches_and_is_told_of_its_mistakes(url: str, tiny_release: TinyRelease) -> None:
    asked = [tiny_release.shown_only, "nobody", *tiny_release.user_ids]
    with Client(url) as sonder:
        assert sonder.is_ready()
        assert [profile["user_id"] for profile in sonder.batch_get(asked)] == asked
        with pytest.raises(InvalidRequest, match="unknown field 'mood'"):
            sonder.profile("user-1", fields=["mood"])


def test_an_event_is_in_the_stored_profile_a_moment_after_it_was_accepted(url: str, tiny_release: TinyRelease) -> None:
    at = iso_time(tiny_release.as_of_us + 1)
    events = [{"user_id": "someone new", "item_id": "item-3", "action": "buy", "timestamp": at}]
    with httpx.Client(base_url=url, trust_env=False) as http:
        assert http.post("/v1/events", json={"events": events}).json()["accepted"] == 1
        deadline = time.monotonic() + 30
        while (stored := http.get("/v1/users/someone%20new").json())["is_cold"]:
            assert time.monotonic() < deadline, "the refresh did not come"
            time.sleep(0.02)
    assert (stored["num_events"], stored["segments"]["lifecycle"]) == (1, "new")


def test_a_promotion_is_served_without_a_restart_and_no_read_fails(
    url: str, tiny_release: TinyRelease, another_release: Callable[[TinyRelease, str], str]
) -> None:
    another_release(tiny_release, "release-2")
    registry, deadline = Registry(tiny_release.workspace), time.monotonic() + 60
    with httpx.Client(base_url=url, trust_env=False) as http:
        for release in ("release-2", "release-1"):  # and back
            registry.promote(release, reason="a test")
            answer = {"release": ""}
            while answer["release"] != release:
                assert time.monotonic() < deadline, "the promotion did not come"
                answer = http.get("/v1/users/user-1").raise_for_status().json()
                assert "degraded" not in http.get("/v1/users/user-1?fresh=true").raise_for_status().json()
            assert "degraded" not in http.get("/v1/users/user-1/recommendations").raise_for_status().json()
