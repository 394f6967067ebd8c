"""The HTTP edge: what is malformed becomes a problem document, what is well-formed arrives whole."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from services.gateway import schemas
from services.gateway.http import create_app
from services.gateway.problems import MAX_BODY_BYTES, MEDIA_TYPE
from services.gateway.schemas import MAX_BATCH, MAX_ID_BYTES

if TYPE_CHECKING:
    from conftest import Served

BATCH = "/v1/users:batchGet"
SHARED = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
IDS = st.text(st.characters(codec="utf-8"), min_size=1).filter(lambda user_id: len(user_id.encode()) <= MAX_ID_BYTES)
JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda part: st.lists(part) | st.dictionaries(st.text(), part),
)


def problem_of(answer: httpx.Response) -> schemas.Problem:
    """The problem document of an answer, which must be one."""
    assert answer.headers["content-type"] == MEDIA_TYPE
    problem = schemas.Problem.model_validate(answer.json())
    assert problem.status == answer.status_code
    assert problem.instance == answer.request.url.raw_path.split(b"?")[0].decode()
    return problem


@SHARED
@given(IDS)
def test_any_id_arrives_whole(served: Served, user_id: str) -> None:
    answer = served.get(f"/v1/users/{quote(user_id, safe='')}")
    assert (answer["user_id"], answer["cold_reason"]) == (user_id, "unknown_user")
    batch = served.request("POST", BATCH, json={"user_ids": [user_id]}).json()
    assert [profile["user_id"] for profile in batch["profiles"]] == [user_id]


@SHARED
@given(JSON | st.fixed_dictionaries({"user_ids": JSON}))
def test_a_body_is_answered_or_named_as_malformed(served: Served, body: Any) -> None:
    answer = served.request("POST", BATCH, json=body)
    if answer.status_code == 200:
        assert [profile["user_id"] for profile in answer.json()["profiles"]] == body["user_ids"]
    else:
        assert answer.status_code == 422
        assert problem_of(answer).errors


@pytest.mark.parametrize(
    ("path", "place", "detail"),
    [
        ("/v1/users/u?fields=mood", "query /fields", "unknown field 'mood', expected some of num_events,"),
        ("/v1/users/u?fields=", "query /fields", "unknown field ''"),
        ("/v1/users/u?fresh=maybe", "query /fresh", "valid boolean"),
        ("/v1/users/u/recommendations?k=0", "query /k", "greater than or equal to 1"),
        ("/v1/users/u/similar?k=101", "query /k", "less than or equal to 100"),
        ("/v1/users/%FF", "path /user_id", "not UTF-8"),
        (f"/v1/users/{'a' * (MAX_ID_BYTES + 1)}", "path /user_id", "257 bytes, expected 1 to 256"),
    ],
)
def test_a_malformed_request_is_told_where_and_why(served: Served, path: str, place: str, detail: str) -> None:
    answer = served.request("GET", path)
    problem = problem_of(answer)
    assert (problem.status, problem.title) == (422, "Request is invalid")
    assert problem.errors is not None
    assert [f"{error.in_} {error.pointer}" for error in problem.errors] == [place]
    assert detail in problem.detail


@pytest.mark.parametrize(
    ("content", "detail"),
    [
        (b'{"user_ids": ["a"', "not JSON, at character"),
        (b'{"user_ids": ["a"], "more": 1}', "body /more"),
        (b'{"user_ids": ["a", ""]}', "body /user_ids/1: an id of 0 bytes"),
        (b'{"user_ids": []}', "body /user_ids: List should have at least 1 item"),
        (b"", "body"),
    ],
)
def test_a_malformed_batch_is_told_where_and_why(served: Served, content: bytes, detail: str) -> None:
    answer = served.request("POST", BATCH, content=content, headers={"content-type": "application/json"})
    assert answer.status_code == 422
    assert detail in problem_of(answer).detail


def test_the_largest_batch_fits_and_one_more_does_not(served: Served) -> None:
    ids = [f"{number:0{MAX_ID_BYTES // 2}}".replace("0", "ü") for number in range(MAX_BATCH + 1)]
    assert served.request("POST", BATCH, json={"user_ids": ids[:MAX_BATCH]}).status_code == 200
    assert "at most 1000 items" in problem_of(served.request("POST", BATCH, json={"user_ids": ids})).detail


def test_a_body_that_is_too_large_is_refused_whether_its_size_is_declared_or_not(served: Served) -> None:
    async def streamed() -> AsyncIterator[bytes]:
        for _ in range(MAX_BODY_BYTES // 65_536 + 1):
            yield b" " * 65_536

    for content in (b" " * (MAX_BODY_BYTES + 1), streamed()):
        problem = problem_of(served.request("POST", BATCH, content=content))
        assert (problem.status, str(MAX_BODY_BYTES) in problem.detail) == (413, True)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/v2", 404), ("GET", "/v1/users/", 404), ("GET", "/v1/users/a/b", 404), ("PUT", "/v1/users/u", 405)],
)
def test_what_is_no_route_is_a_problem_too(served: Served, method: str, path: str, status: int) -> None:
    answer = served.request(method, path)
    assert problem_of(answer).status == status
    assert answer.headers.get("allow") == ("GET" if status == 405 else None)


def test_our_own_mistakes_tell_nothing_of_the_inside(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> bytes:
        raise RuntimeError("secret path /srv/x")

    monkeypatch.setattr(served.engine, "profile", broken)
    answer = served.request("GET", "/v1/users/u")
    assert problem_of(answer).status == 500
    assert "secret" not in answer.text


def test_without_a_release_the_process_is_alive_and_not_ready() -> None:
    async def ask(path: str) -> httpx.Response:
        transport = httpx.ASGITransport(create_app(None))
        async with httpx.AsyncClient(transport=transport, base_url="http://sonder") as client:
            return await client.get(path)

    assert asyncio.run(ask("/healthz")).json() == {"status": "ok"}
    for path in ("/readyz", "/v1/release", "/v1/users/u", "/v1/users/u/similar"):
        answer = asyncio.run(ask(path))
        assert (problem_of(answer).status, answer.headers["retry-after"]) == (503, "1")


@pytest.mark.parametrize("method", ["embed", "segment", "score", "recommend", "similar"])
def test_it_is_ready_once_every_stage_has_answered_and_stays_so(served: Served, method: str) -> None:
    stage = {"embed": "embedding", "segment": "segmentation", "score": "scoring"}.get(method, "retrieval")
    served.handles[stage].fails[method] = RuntimeError("not up yet")
    answer = served.request("GET", "/readyz")
    assert "a stage has not answered yet" in problem_of(answer).detail
    assert answer.status_code == 503
    served.handles[stage].fails.clear()
    assert served.get("/readyz") == {"status": "ok"}
    asked = len(served.handles[stage].calls)
    served.handles[stage].fails[method] = RuntimeError("gone again")
    assert served.get("/readyz") == {"status": "ok"}
    assert len(served.handles[stage].calls) == asked


@pytest.mark.parametrize(
    ("path", "model"),
    [
        ("/v1/users/user-1", schemas.Profile),
        ("/v1/users/user-1?fresh=true", schemas.Profile),
        ("/v1/users/user-1?fields=embedding", schemas.Profile),
        ("/v1/users/nobody", schemas.Profile),
        ("/v1/users/user-1/embedding", schemas.EmbeddingAnswer),
        ("/v1/users/user-1/interests", schemas.InterestsAnswer),
        ("/v1/users/user-1/affinities", schemas.AffinitiesAnswer),
        ("/v1/users/user-1/segments", schemas.SegmentsAnswer),
        ("/v1/users/user-1/scores", schemas.ScoresAnswer),
        ("/v1/users/user-1/explanation", schemas.ExplanationAnswer),
        ("/v1/users/user-1/recommendations", schemas.RecommendationsAnswer),
        ("/v1/users/nobody/recommendations", schemas.RecommendationsAnswer),
        ("/v1/users/user-1/similar", schemas.SimilarAnswer),
        ("/v1/release", schemas.ReleaseAnswer),
        ("/readyz", schemas.Health),
    ],
)
def test_an_answer_holds_what_its_description_says_and_no_more(
    served: Served, path: str, model: type[BaseModel]
) -> None:
    def names(node: Any) -> Any:
        if isinstance(node, dict):
            return {name: names(child) for name, child in node.items()}
        return [names(child) for child in node] if isinstance(node, list) else None

    answer = served.get(path)
    described = model.model_validate(answer).model_dump(mode="json", by_alias=True, exclude_unset=True)
    assert names(described) == names(answer)
    assert set(answer) >= {name for name, field in model.model_fields.items() if field.is_required()}


def test_a_body_that_is_not_text_is_malformed_and_no_undocumented_answer(served: Served) -> None:
    answer = served.request("POST", "/v1/users:batchGet", content=b"\x80", headers={"content-type": "application/json"})
    assert (answer.status_code, answer.json()["detail"]) == (422, "The body is not JSON in UTF-8.")
