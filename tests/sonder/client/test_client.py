from __future__ import annotations

from collections.abc import Callable

import httpx
import pytest

from sonder.client import Client
from sonder.core.errors import InvalidRequest, NotFound, NotReady, SonderError, StageUnavailable

Handler = Callable[[httpx.Request], httpx.Response]


def client(handler: Handler, pauses: list[float] | None = None) -> Client:
    kept = [] if pauses is None else pauses
    return Client("http://sonder", transport=httpx.MockTransport(handler), pause=kept.append)


def failing(status: int, times: int, **extra: dict[str, str]) -> tuple[Handler, list[httpx.Request]]:
    seen: list[httpx.Request] = []

    def handler(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        if len(seen) <= times:
            return httpx.Response(status, json={"title": "Busy", "detail": "try later"}, **extra)  # type: ignore[arg-type]
        return httpx.Response(200, json={"release": "r-1", "profiles": []})

    return handler, seen


def test_an_id_travels_whole_whatever_it_holds() -> None:
    asked: list[bytes] = []

    def handler(request: httpx.Request) -> httpx.Response:
        asked.append(request.url.raw_path)
        return httpx.Response(200, json={})

    with client(handler) as sonder:
        sonder.profile("a/b?c d%ü", fields=["scores", "interests"], fresh=True)
    assert asked == [b"/v1/users/a%2Fb%3Fc%20d%25%C3%BC?fresh=true&fields=scores%2Cinterests"]


def test_batches_are_cut_to_what_a_request_may_hold_and_keep_their_order() -> None:
    sizes: list[int] = []

    def handler(request: httpx.Request) -> httpx.Response:
        user_ids = httpx.Response(200, content=request.content).json()["user_ids"]
        sizes.append(len(user_ids))
        return httpx.Response(200, json={"profiles": [{"user_id": user_id} for user_id in user_ids]})

    asked = [str(user) for user in range(2_500)]
    with client(handler) as sonder:
        assert [profile["user_id"] for profile in sonder.batch_get(asked)] == asked
    assert sizes == [1_000, 1_000, 500]


@pytest.mark.parametrize("status", [429, 502, 503, 504])
def test_a_busy_server_is_asked_again(status: int) -> None:
    handler, seen = failing(status, times=2)
    with client(handler) as sonder:
        assert sonder.release() == {"release": "r-1", "profiles": []}
    assert len(seen) == 3


def test_the_server_s_retry_after_is_respected() -> None:
    handler, _ = failing(429, times=1, headers={"retry-after": "2"})
    pauses: list[float] = []
    with client(handler, pauses) as sonder:
        sonder.release()
    assert len(pauses) == 1
    assert 2.0 <= pauses[0] <= 2.1


def test_pauses_double_and_stay_random() -> None:
    handler, _ = failing(503, times=4)
    pauses: list[float] = []
    with client(handler, pauses) as sonder:
        sonder.release()
    assert len(pauses) == 4
    assert all(0 <= pause <= 0.05 * 2**attempt for attempt, pause in enumerate(pauses))
    assert len(set(pauses)) == 4


def test_after_the_last_attempt_the_error_is_raised() -> None:
    handler, seen = failing(503, times=99)
    with client(handler) as sonder, pytest.raises(StageUnavailable, match="try later"):
        sonder.release()
    assert len(seen) == 5


def test_a_broken_connection_is_tried_again_and_then_told() -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused")

    pauses: list[float] = []
    with client(handler, pauses) as sonder, pytest.raises(StageUnavailable, match="does not answer"):
        sonder.profile("a")
    assert len(pauses) == 4


@pytest.mark.parametrize(
    ("status", "title", "kind"),
    [
        (404, "Not found", NotFound),
        (422, "Request is invalid", InvalidRequest),
        (413, "Request Entity Too Large", InvalidRequest),
        (500, "Internal Server Error", SonderError),
    ],
)
def test_problem_documents_become_errors_at_once(status: int, title: str, kind: type[SonderError]) -> None:
    calls = 0

    def handler(request: httpx.Request) -> httpx.Response:
        nonlocal calls
        calls += 1
        return httpx.Response(status, json={"title": title, "detail": "why"})

    with client(handler) as sonder, pytest.raises(kind, match=f"{status} {title}. why"):
        sonder.profile("a")
    assert calls == 1


def test_a_server_without_a_release_is_not_ready() -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        return httpx.Response(503, json={"title": NotReady.title, "detail": "No release is loaded yet."})

    with client(handler) as sonder:
        assert not sonder.is_ready()
        with pytest.raises(NotReady):
            sonder.release()


def test_an_error_that_is_no_problem_document_still_names_its_status() -> None:
    with (
        client(lambda request: httpx.Response(500, text="<html>")) as sonder,
        pytest.raises(SonderError, match="500 Internal Server Error"),
    ):
        sonder.release()
