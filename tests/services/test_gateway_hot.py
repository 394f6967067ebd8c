"""The short way of a read, stored or fresh, answers exactly what the route answers; all else is left to it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from services.gateway import hot
from services.gateway.engine import Engine
from services.gateway.http import create_app
from sonder.core.errors import ArtefactMismatch, SonderError, StageUnavailable

if TYPE_CHECKING:
    from conftest import Served


def answers(engine: Any, paths: list[str], method: str = "GET") -> list[httpx.Response]:
    async def ask() -> list[httpx.Response]:
        transport = httpx.ASGITransport(create_app(engine), raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://sonder") as client:
            return [await client.request(method, path) for path in paths]

    return asyncio.run(ask())


@pytest.fixture
def is_short(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether each request since took the short way."""
    taken: list[bool] = []
    original = hot._plain_id

    def recorded(scope: Any) -> str | None:
        user_id = original(scope)
        taken.append(user_id is not None)
        return user_id

    monkeypatch.setattr(hot, "_plain_id", recorded)
    return taken


VOLATILE = {"age_ms": 0, "computed_at": ""}


@pytest.mark.parametrize("user", ["user-1", "nobody", "u" * 256, "a:b,c;d=e@f"])
def test_both_ways_give_the_same_answer(served: Served, is_short: list[bool], user: str) -> None:
    short, routed = answers(served.engine, [f"/v1/users/{user}", f"/v1/users/{user}?fresh=false"])
    assert is_short == [True, False]
    assert {**short.json(), "age_ms": 0} == {**routed.json(), "age_ms": 0}
    assert (short.status_code, set(short.headers)) == (routed.status_code, set(routed.headers))
    assert short.headers["content-type"] == routed.headers["content-type"]
    assert int(short.headers["content-length"]) == len(short.content)


@pytest.mark.parametrize("user", ["user-1", "nobody", "u" * 256, "a:b,c;d=e@f"])
def test_both_ways_give_the_same_fresh_profile(served: Served, is_short: list[bool], user: str) -> None:
    short, routed = answers(served.engine, [f"/v1/users/{user}?fresh=true", f"/v1/users/{user}?fresh=1"])
    assert is_short == [True, False]
    assert {**short.json(), **VOLATILE} == {**routed.json(), **VOLATILE}
    assert list(short.json()) == list(routed.json())
    assert (short.status_code, set(short.headers)) == (routed.status_code, set(routed.headers))
    assert int(short.headers["content-length"]) == len(short.content)


def test_a_fresh_profile_of_a_named_release_takes_the_route(served: Served, is_short: list[bool]) -> None:
    answer = served.request("GET", "/v1/users/user-1?fresh=true", headers={"x-sonder-release": "another"})
    assert (is_short, answer.status_code) == ([False], 404)


@pytest.mark.parametrize("error", [StageUnavailable("The store is away"), ArtefactMismatch("A torn record")])
def test_a_fresh_profile_that_fails_is_asked_for_once_and_told_like_by_the_route(
    served: Served, monkeypatch: pytest.MonkeyPatch, error: SonderError
) -> None:
    asked = []

    async def failing(self: Engine, user_id: str, fields: Any = None) -> bytes:
        asked.append(user_id)
        raise error

    monkeypatch.setattr(Engine, "fresh_profile", failing)
    short, routed = answers(served.engine, ["/v1/users/user-1?fresh=true", "/v1/users/user-1?fresh=1"])
    assert asked == ["user-1", "user-1"]
    assert (short.status_code, short.json()) == (routed.status_code, routed.json())
    assert {**short.headers, "x-request-id": ""} == {**routed.headers, "x-request-id": ""}


def test_a_bug_in_a_fresh_profile_is_told_without_its_words(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    async def failing(self: Engine, user_id: str, fields: Any = None) -> bytes:
        raise ZeroDivisionError("of secrets")

    monkeypatch.setattr(Engine, "fresh_profile", failing)
    (answer,) = answers(served.engine, ["/v1/users/user-1?fresh=true"])
    assert answer.status_code == 500
    assert answer.headers["content-type"] == "application/problem+json"
    assert "secrets" not in answer.text


@pytest.mark.parametrize(
    "path",
    [
        "/v1/users/",
        f"/v1/users/{'u' * 257}",
        "/v1/users/a%2Fb",
        "/v1/users/k%C3%A4ufer",
        "/v1/users/%00",
        "/v1/users/user-1/scores",
        "/v1/users/user-1/",
        "/v1/users/user-1?fields=scores",
        "/v1/users/user-1?fresh=1",
        "/v1/users/user-1?fresh=true&fields=scores",
        "/v1/users/user-1?fresh=true&release=release-1",
        "/v1/users/user-1/segments?fresh=true",
        "/v1/users:batchGet",
        "/v1/release",
    ],
)
def test_what_is_not_plain_takes_the_route(served: Served, is_short: list[bool], path: str) -> None:
    answers(served.engine, [path])
    assert is_short == [False]


def test_other_methods_take_the_route(served: Served) -> None:
    assert [one.status_code for one in answers(served.engine, ["/v1/users/user-1"], "PATCH")] == [405]


def test_failures_are_told_by_the_route(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    assert [one.status_code for one in answers(None, ["/v1/users/user-1", "/v1/users/user-1?fresh=true"])] == [503, 503]

    def away(self: Engine, user_id: str, fields: Any = None) -> bytes:
        raise StageUnavailable("The store is away")

    monkeypatch.setattr(Engine, "profile", away)
    (answer,) = answers(served.engine, ["/v1/users/user-1"])
    assert (answer.status_code, answer.json()["detail"]) == (503, "The store is away.")


def test_short_reads_are_counted_by_their_route(served: Served) -> None:
    def counted() -> float:
        text = served.request("GET", "/metrics").text
        wanted = 'sonder_request_seconds_count{method="GET",route="/v1/users/{user_id}",status="200"}'
        return sum(float(line.split()[-1]) for line in text.splitlines() if line.startswith(wanted))

    before = counted()
    served.request("GET", "/v1/users/user-1")
    served.request("GET", "/v1/users/user-1?fresh=true")
    assert counted() == before + 2
