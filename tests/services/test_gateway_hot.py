"""The short way of a stored read answers exactly what the route answers, and leaves everything else to it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from services.gateway.engine import Engine
from services.gateway.hot import StoredReads
from services.gateway.http import create_app
from sonder.core.errors import StageUnavailable

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
    original = StoredReads._profile

    def recorded(self: StoredReads, scope: Any) -> bytes | None:
        content = original(self, scope)
        taken.append(content is not None)
        return content

    monkeypatch.setattr(StoredReads, "_profile", recorded)
    return taken


@pytest.mark.parametrize("user", ["user-1", "nobody", "u" * 256, "a:b,c;d=e@f"])
def test_both_ways_give_the_same_answer(served: Served, is_short: list[bool], user: str) -> None:
    short, routed = answers(served.engine, [f"/v1/users/{user}", f"/v1/users/{user}?fresh=false"])
    assert is_short == [True, False]
    assert {**short.json(), "age_ms": 0} == {**routed.json(), "age_ms": 0}
    assert (short.status_code, set(short.headers)) == (routed.status_code, set(routed.headers))
    assert short.headers["content-type"] == routed.headers["content-type"]
    assert int(short.headers["content-length"]) == len(short.content)


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
    assert answers(None, ["/v1/users/user-1"])[0].status_code == 503

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
    assert counted() == before + 1
