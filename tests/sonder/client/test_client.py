from __future__ import annotations

import asyncio
import inspect
import subprocess
import sys
from collections.abc import Callable

import httpx
import orjson
import pyarrow as pa
import pytest
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, use_span

from sonder.client import AsyncClient, Client, calls
from sonder.client.assigning import ALLOCATIONS_FOR_S, Allocations
from sonder.core.errors import InvalidRequest, NotFound, NotReady, SonderError, StageUnavailable
from sonder.experiments.assignment import Allocation, assign_users

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


def test_events_are_cut_into_requests_and_a_repetition_has_the_same_ids() -> None:
    bodies: list[list[dict[str, str]]] = []

    def handler(request: httpx.Request) -> httpx.Response:
        bodies.append(httpx.Response(200, content=request.content).json()["events"])
        if len(bodies) == 1:
            raise httpx.ReadError("the answer was lost")
        rejected = [{"row": 0, "reason": "anonymous", "detail": "no user_id"}] if len(bodies[-1]) < 1_000 else []
        return httpx.Response(202, json={"accepted": len(bodies[-1]), "duplicates": 0, "rejected": rejected})

    rows = ({"user_id": "u", "item_id": "i", "action": "buy"} for _ in range(1_002))
    with client(handler) as sonder:
        told = sonder.send_events(rows)
    assert bodies[0] == bodies[1]
    assert len({row["event_id"] for row in bodies[1] + bodies[2]}) == 1_002
    assert (told["accepted"], [row["row"] for row in told["rejected"]]) == (1_002, [1_000])


def test_an_event_keeps_its_own_id() -> None:
    call = next(calls.events([{"event_id": "mine", "user_id": "u"}]))[1]
    assert call.json["events"] == [{"event_id": "mine", "user_id": "u"}]


def test_tries_end_at_the_deadline_of_the_call() -> None:
    handler, seen = failing(429, times=99, headers={"retry-after": "20"})
    with (
        Client("http://sonder", transport=httpx.MockTransport(handler), pause=lambda _: None, deadline_s=30) as sonder,
        pytest.raises(StageUnavailable),
    ):
        sonder.release()
    assert len(seen) == 2


def test_the_key_travels_as_a_header_and_is_in_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    keys: list[str] = []

    def handler(request: httpx.Request) -> httpx.Response:
        keys.append(request.headers["authorization"])
        return httpx.Response(403, json={"title": "Forbidden", "detail": "not for this key"})

    monkeypatch.setenv("SONDER_API_KEY", "from-the-environment")
    for given in (None, "given"):
        sonder = Client("http://sonder", api_key=given, transport=httpx.MockTransport(handler))
        with sonder, pytest.raises(InvalidRequest) as told:
            sonder.erase("u")
        assert keys[-1].removeprefix("Bearer ") not in f"{told.value!r} {sonder!r} {vars(sonder)!r}"
    assert keys == ["Bearer from-the-environment", "Bearer given"]


def test_both_clients_have_the_same_methods_with_the_same_parameters() -> None:
    def methods(kind: type) -> dict[str, list[str]]:
        public = {name: member for name, member in vars(kind).items() if not name.startswith("_")}
        return {name: list(inspect.signature(member).parameters) for name, member in public.items()}

    assert methods(Client) == methods(AsyncClient)


def test_the_asynchronous_client_reads_batches_side_by_side_within_its_bound_and_in_order() -> None:
    at_once, most = 0, 0

    async def handler(request: httpx.Request) -> httpx.Response:
        nonlocal at_once, most
        at_once, most = at_once + 1, max(most, at_once + 1)
        await asyncio.sleep(0.01)
        at_once -= 1
        user_ids = httpx.Response(200, content=request.content).json()["user_ids"]
        return httpx.Response(200, json={"profiles": [{"user_id": user_id} for user_id in user_ids]})

    asked = [str(user) for user in range(5_500)]

    async def read() -> list[str]:
        async with AsyncClient("http://sonder", transport=httpx.MockTransport(handler), max_at_once=3) as sonder:
            return [profile["user_id"] for profile in await sonder.batch_get(asked)]

    assert asyncio.run(read()) == asked
    assert most == 3


def test_the_asynchronous_client_tries_again_and_then_raises_the_same_errors() -> None:
    handler, seen = failing(503, times=99)
    pauses: list[float] = []

    async def pause(seconds: float) -> None:
        pauses.append(seconds)

    async def ask() -> None:
        async with AsyncClient("http://sonder", transport=httpx.MockTransport(handler), pause=pause) as sonder:
            with pytest.raises(StageUnavailable, match="try later"):
                await sonder.release()

    asyncio.run(ask())
    assert (len(seen), len(pauses)) == (5, 4)


def test_the_trace_of_the_caller_goes_along() -> None:
    traced: list[str | None] = []

    def handler(request: httpx.Request) -> httpx.Response:
        traced.append(request.headers.get("traceparent"))
        return httpx.Response(200, json={})

    span = NonRecordingSpan(SpanContext(1, 2, is_remote=True, trace_flags=TraceFlags(1)))
    with client(handler) as sonder:
        with use_span(span):
            sonder.release()
        sonder.release()
    assert traced == [f"00-{1:032x}-{2:016x}-01", None]


RUNNING = {
    "name": "first",
    "version": 2,
    "method": "split",
    "hypothesis": "more is bought",
    "arms": [{"name": "control", "weight": 1.0}, {"name": "treatment", "weight": 3.0}],
    "share": 0.5,
    "layer": None,
    "salt": "first",
    "layer_salt": "own/first",
    "lower": 0.25,
    "eligibility": None,
    "started_at": "2026-03-01T12:00:00Z",
    "ends_at": "2026-03-29T12:00:00Z",
}


def test_both_clients_assign_users_by_themselves_as_a_batch_does_and_ask_once_for_what_runs() -> None:
    allocation = Allocation("first", "first", "own/first", 0.25, ("control", "treatment"), (1.0, 3.0))
    users = [f"user-{number}" for number in range(5_000)]
    expected = assign_users(allocation, users, 0.5).to_list()
    asked: list[str] = []

    def handler(request: httpx.Request) -> httpx.Response:
        asked.append(request.url.path)
        return httpx.Response(200, json={"experiments": [RUNNING, {**RUNNING, "name": "second", "eligibility": "r"}]})

    async def assigned() -> list[str | None]:
        async with AsyncClient("http://sonder", transport=httpx.MockTransport(handler)) as sonder:
            return [await sonder.assign("first", user) for user in users]

    with client(handler) as sonder:
        assert [sonder.assign("first", user) for user in users] == expected
        with pytest.raises(InvalidRequest, match="is_eligible"):
            sonder.assign("second", "user-1")
        assert sonder.assign("second", "user-1", is_eligible=False) is None
        with pytest.raises(NotFound, match="first, second"):
            sonder.assign("third", "user-1")
    assert asyncio.run(assigned()) == expected
    assert asked == ["/v1/experiments"] * 2
    assert set(expected) == {None, "control", "treatment"}


def test_what_runs_is_asked_for_again_when_it_is_old() -> None:
    now, allocations = 0.0, Allocations(clock_s=lambda: now)
    assert allocations.are_old
    allocations.replace([RUNNING])  # type: ignore[list-item]
    now = ALLOCATIONS_FOR_S - 1
    assert not allocations.are_old
    now = ALLOCATIONS_FOR_S
    assert allocations.are_old


def test_an_assignment_is_asked_for_and_a_name_and_an_id_travel_whole() -> None:
    paths: list[bytes] = []

    def handler(request: httpx.Request) -> httpx.Response:
        paths.append(request.url.raw_path)
        return httpx.Response(200, json={"arm": "control"})

    with client(handler) as sonder:
        assert sonder.assignment("a/b", "u&1")["arm"] == "control"
    assert paths == [b"/v1/experiments/a%2Fb/assignment?user_id=u%261"]


def test_only_what_a_caller_wishes_is_sent_so_that_an_experiment_may_decide_the_rest() -> None:
    queries: list[str] = []

    def handler(request: httpx.Request) -> httpx.Response:
        queries.append(request.url.query.decode())
        return httpx.Response(200, json={})

    with client(handler) as sonder:
        sonder.recommendations("u")
        sonder.recommendations("u", interests=False, diversity=0.0)
        sonder.recommendations("u", interests=True)
    assert queries == [
        "k=10&seen=false",
        "k=10&seen=false&from=vector&diversity=0.0",
        "k=10&seen=false&from=interests",
    ]


def test_the_library_itself_imports_no_http() -> None:
    code = "import sys, sonder; assert 'httpx' not in sys.modules; sonder.Client; assert 'httpx' in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_tables_of_both_clients_are_put_together_in_order() -> None:
    asked = [str(user) for user in range(2_500)]

    def handler(request: httpx.Request) -> httpx.Response:
        assert request.headers["accept"] == calls.ARROW
        assert request.url.params["fields"] == "embedding,scores"
        user_ids = orjson.loads(request.content)["user_ids"]
        table = pa.table({"user_id": user_ids, "release": pa.array(["r"] * len(user_ids)).dictionary_encode()})
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
        return httpx.Response(200, content=sink.getvalue().to_pybytes())

    async def asynchronous() -> pa.Table:
        async with AsyncClient("http://sonder", transport=httpx.MockTransport(handler)) as sonder:
            return await sonder.batch_get_table(asked, fields=["embedding", "scores"])

    with client(handler) as sonder:
        table = sonder.batch_get_table(asked, fields=["embedding", "scores"])
        assert table.column("user_id").to_pylist() == asked
        with pytest.raises(InvalidRequest, match="no users"):
            sonder.batch_get_table([])
    assert asyncio.run(asynchronous()).equals(table)
