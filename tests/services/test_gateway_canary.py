"""Two releases behind one gateway, over real engines: who reads which, what is compared, and how it ends."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import httpx
import orjson
import pyarrow as pa
import pytest

from pipelines.audience import refresh_audiences, save_audience
from services.gateway import arms
from services.gateway import serving as serving_module
from services.gateway import shadow as shadow_module
from services.gateway.deployment import Refresh
from services.gateway.serving import Serving
from services.gateway.split import SplitEngine
from sonder.core.workspace import Workspace
from sonder.events.online import OnlineEvent
from sonder.releases import canary_counts
from sonder.releases.artefacts import Release
from sonder.releases.canary import Canaries, Trial
from sonder.releases.registry import Registry
from tests.services.canary_gateway import Gateway, release_of, start

if TYPE_CHECKING:
    from conftest import Served, TinyRelease

ARROW = {"accept": "application/vnd.apache.arrow.stream"}


@pytest.fixture
def gateway(own_served: Served, another_release: Callable[[TinyRelease, str], str]):  # type: ignore[no-untyped-def]
    for name in ("release-2", "release-3"):
        another_release(own_served.release, name)
    made = Gateway(own_served)
    yield made
    made.close()


def timeless(content: bytes) -> bytes:
    return re.sub(rb'"age_ms":\d+|"(computed_at|as_of)":"[^"]*"', b"", content)


def test_the_right_share_and_always_the_same_users_read_the_candidate_by_every_route(gateway: Gateway) -> None:
    users = gateway.served.release.user_ids
    parts = ["", "?fields=scores", "?fresh=true", "/scores", "/segments?fresh=true", "/recommendations", "/similar"]
    parts += ["/explanation", "/embedding", "/interests", "/affinities", "/segments"]

    async def ask() -> Trial:
        await gateway.settle()
        trial = start(gateway)
        await gateway.settle()
        async with gateway.client() as http:
            for user in users:
                answers = await asyncio.gather(*(http.get(f"/v1/users/{user}{part}") for part in parts))
                assert {one.status_code for one in answers} == {200}
                assert {one.json()["release"] for one in answers} == {release_of(trial, user)}, user
        return trial

    trial = asyncio.run(ask())
    assert {release_of(trial, user) for user in users} == {"release-1", "release-2"}


def test_a_batch_is_answered_in_order_by_both_arms_as_json_arrow_and_grpc_messages(gateway: Gateway) -> None:
    from services.gateway.rpc import sonder_pb2 as pb
    from services.gateway.rpc.requests import METHODS, to_message

    users = [*gateway.served.release.user_ids, "nobody", gateway.served.release.shown_only, "user-3"]

    async def ask() -> None:
        await gateway.settle()
        async with gateway.client() as http:
            before = await http.post("/v1/users:batchGet", json={"user_ids": users})
            trial = start(gateway)
            await gateway.settle()
            after = await http.post("/v1/users:batchGet", json={"user_ids": users})
            table = await http.post("/v1/users:batchGet", json={"user_ids": users}, headers=ARROW)
        expected = [release_of(trial, user) for user in users]
        assert len(set(expected)) == 2
        assert after.json()["release"] == "release-1"
        assert [one["user_id"] for one in after.json()["profiles"]] == users
        assert [one["release"] for one in after.json()["profiles"]] == expected
        assert timeless(after.content).replace(b"release-2", b"release-1") == timeless(before.content)
        read = pa.ipc.open_stream(table.content).read_all()
        assert read.column("user_id").to_pylist() == users
        assert read.column("release").to_pylist() == expected
        method = METHODS["BatchGetProfiles"]
        message: Any = to_message(
            pb.Profiles, await method.answer(gateway.engine, pb.BatchGetProfilesRequest(user_ids=users))
        )
        assert [one.release for one in message.profiles] == expected

    asyncio.run(ask())


def test_audiences_are_answered_by_both_arms_and_neither_is_degraded(gateway: Gateway) -> None:
    save_audience(gateway.workspace, "everybody", "num_events > 0")
    refresh_audiences(gateway.workspace, num_workers=0)

    async def ask() -> list[dict[str, Any]]:
        gateway.served.engine._memberships.look()
        await gateway.settle()
        start(gateway)
        await gateway.settle()
        async with gateway.client() as http:
            return [(await http.get(f"/v1/users/{user}")).json() for user in gateway.served.release.user_ids]

    answers = asyncio.run(ask())
    assert {one["release"] for one in answers} == {"release-1", "release-2"}
    assert [[audience["name"] for audience in one["audiences"]] for one in answers] == [["everybody"]] * len(answers)
    assert not any("degraded" in one for one in answers)


def test_a_release_is_answered_from_when_it_is_named_and_served_and_else_it_is_404(gateway: Gateway) -> None:
    paths = ["/v1/users/user-1", "/v1/users/user-1/recommendations", "/v1/items/item-3/similar", "/v1/release"]

    async def ask() -> None:
        await gateway.settle()
        async with gateway.client() as http:
            assert (await http.get("/v1/users/user-1?release=release-2")).status_code == 404
            assert (await http.get("/v1/users/user-1?release=release-1")).status_code == 200
            gateway.canaries.also("release-2")
            gateway.canaries.also("release-3")
            await gateway.settle()
            assert (await http.get("/v1/release")).json()["also"] == ["release-2", "release-3"]
            for path in paths:
                assert (await http.get(path)).json()["release"] == "release-1"
                for named in ("release-2", "release-3", "release-1"):
                    by_query = await http.get(path, params={"release": named})
                    by_header = await http.get(path, headers={"x-sonder-release": named})
                    assert {one.json()["release"] for one in (by_query, by_header)} == {named}, path
            both = await http.get(paths[0], params={"release": "release-2"}, headers={"x-sonder-release": "release-3"})
            assert both.json()["release"] == "release-2"
            named = await http.post("/v1/users:batchGet?release=release-3", json={"user_ids": ["user-1", "nobody"]})
            assert {one["release"] for one in named.json()["profiles"]} == {"release-3"}
            refused = await http.get(paths[0], headers={"x-sonder-release": "release-9"})
            assert (refused.status_code, refused.headers["content-type"]) == (404, "application/problem+json")
            assert "'release-9' is not served here" in refused.json()["detail"]
            assert "release-1, release-2, release-3" in refused.json()["detail"]
            gateway.canaries.end_also("release-3")
            await gateway.settle()
            assert (await http.get(paths[0], params={"release": "release-3"})).status_code == 404

    asyncio.run(ask())


def test_what_is_of_no_user_is_of_the_served_release(gateway: Gateway) -> None:
    async def ask() -> None:
        await gateway.settle()
        start(gateway, share=1.0)
        await gateway.settle()
        async with gateway.client() as http:
            assert (await http.get("/v1/users/user-1")).json()["release"] == "release-2"
            assert (await http.get("/v1/items/item-3/similar")).json()["release"] == "release-1"
            preview = await http.post("/v1/audiences:preview", json={"rule": "count(buy, 28d) >= 1"})
            assert preview.json()["release"] == "release-1"
            assert (await http.get("/v1/release")).json()["release"] == "release-1"

    asyncio.run(ask())


def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Slots of a third of a second and looks in between, so that a trial takes seconds."""
    monkeypatch.setattr(canary_counts, "SLOT_S", 0.3)
    monkeypatch.setattr(serving_module, "LOOK_EVERY_S", 0.05)
    monkeypatch.setattr(serving_module, "WRITE_EVERY_S", 0.1)


def test_a_candidate_whose_scoring_breaks_is_rolled_back_and_no_request_fails(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    quick(monkeypatch)
    users, statuses = gateway.served.release.user_ids, set[int]()

    async def read(http: httpx.AsyncClient) -> set[str]:
        paths = [f"/v1/users/{user}{part}" for user in users for part in ("", "?fresh=true")]
        answers = await asyncio.gather(*(http.get(path) for path in paths))
        statuses.update(one.status_code for one in answers)
        return {one.json()["release"] for one in answers}

    async def ask() -> None:
        await gateway.settle()
        trial = start(gateway)
        await gateway.settle()
        watching = asyncio.create_task(gateway.serving.run())
        async with gateway.client() as http:
            assert await read(http) == {"release-1", "release-2"}
            gateway.handles["release-2"]["scoring"].fails["score"] = RuntimeError("broken")
            deadline = time.monotonic() + 60
            while await read(http) != {"release-1"}:
                assert time.monotonic() < deadline, "no rollback"
                await asyncio.sleep(0.01)
            assert await read(http) == {"release-1"}
        ended = gateway.canaries.read().ended[0]
        assert (ended.state, ended.trial.id) == ("rolled_back", trial.id)
        assert "degraded computed" in ended.reason
        assert ended.numbers["degraded computed"]["is_broken"] is True
        while isinstance(gateway.engine, SplitEngine):  # which answered all from the old release until it was replaced
            assert time.monotonic() < deadline, "no look at what is served"
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.5)  # and never again by itself
        assert not isinstance(gateway.engine, SplitEngine)
        assert len(gateway.canaries.read().ended) == 1
        watching.cancel()

    asyncio.run(ask())
    assert statuses == {200}
    assert [one.getMessage() for one in caplog.records if "rolled back" in one.getMessage()]


def test_equal_releases_stay_on_trial(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    quick(monkeypatch)
    monkeypatch.setattr(arms, "QUEUED", 1_000)

    async def ask() -> None:
        await gateway.settle()
        start(gateway)
        await gateway.settle()
        watching = asyncio.create_task(gateway.serving.run())
        async with gateway.client() as http:
            for _ in range(12):
                paths = [
                    f"/v1/users/{user}{part}" for user in gateway.served.release.user_ids for part in ("", "/scores")
                ]
                await asyncio.gather(*(http.get(path) for path in paths))
                await asyncio.sleep(0.1)
        watching.cancel()
        counts = gateway.engine.split.recorder.counts()
        assert counts.total("served", "stored").requests + counts.total("candidate", "stored").requests == 12 * 2 * 24
        assert gateway.canaries.read().running is not None
        # each of the 24 users counts once, whatever it asked
        counted = [sum(users.values()) for arm in counts.scores.values() for users in arm.values()]
        assert sum(counted) == 24

    asyncio.run(ask())


def test_where_the_candidate_fails_the_served_release_answers_and_the_failure_counts(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def ask() -> None:
        await gateway.settle()
        start(gateway, share=1.0)
        await gateway.settle()
        broken = gateway.opened["release-2"].store

        def away(*_: Any) -> None:
            raise OSError("the disk is gone")

        monkeypatch.setattr(broken, "get", away)
        monkeypatch.setattr(broken, "batch_get", away)
        async with gateway.client() as http:
            for path in ("/v1/users/user-1", "/v1/users/user-1?fresh=true", "/v1/users/user-1/similar"):
                assert (await http.get(path)).json()["release"] == "release-1"
            for headers in ({}, ARROW):
                batch = await http.post("/v1/users:batchGet", json={"user_ids": ["user-1", "user-2"]}, headers=headers)
                assert batch.status_code == 200
            assert (await http.get("/v1/users/user-1?release=release-2")).status_code == 500  # it was asked by name
        counts = gateway.engine.split.recorder.counts()
        assert [counts.total("candidate", kind).errors for kind in canary_counts.KINDS] == [1, 2, 2]

    asyncio.run(ask())


def test_a_mistake_of_the_caller_is_no_failure_of_the_candidate(gateway: Gateway) -> None:
    async def ask() -> None:
        await gateway.settle()
        start(gateway, share=1.0)
        await gateway.settle()
        async with gateway.client() as http:
            assert (await http.get("/v1/users/user-1?fields=mood")).status_code == 422
            assert (await http.get("/v1/users/user-1/recommendations?k=0")).status_code == 422
        assert gateway.engine.split.recorder.counts().slots == {}

    asyncio.run(ask())


def test_shadow_leaves_every_answer_as_it_was_and_compares_the_same_users(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arms, "QUEUED", 1_000)
    users = gateway.served.release.user_ids
    paths = [f"/v1/users/{user}{part}" for user in users for part in ("", "?fresh=true", "/recommendations?k=3")]

    async def ask() -> None:
        await gateway.settle()
        async with gateway.client() as http:
            before = [timeless((await http.get(path)).content) for path in paths]
            trial = start(gateway, mode="shadow")
            await gateway.settle()
            after = [timeless((await http.get(path)).content) for path in paths]
            assert after == before
            deadline = time.monotonic() + 20
            expected = sum(release_of(trial, user) == "release-2" for user in users)
            recorder = gateway.engine.split.recorder
            while recorder.counts().total("candidate", "computed").requests < 2 * expected:
                assert time.monotonic() < deadline
                await asyncio.sleep(0.05)
        counts = recorder.counts()
        for kind, num in (("stored", expected), ("computed", 2 * expected)):
            assert [counts.total(arm, kind).requests for arm in canary_counts.ARMS] == [num, num]
        recorder.roll()
        scores = recorder.counts().scores
        assert scores["served"] == scores["candidate"] != {}
        assert sum(scores["served"]["buy_7d"].values()) == expected
        assert gateway.served.handles["scoring"].calls

    asyncio.run(ask())


def test_a_shadow_that_hangs_or_fails_costs_no_answer_and_what_is_too_much_is_dropped(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shadow_module, "MOST_WAITING", 8)
    monkeypatch.setattr(shadow_module, "BUDGET_S", 0.3)

    async def ask() -> None:
        await gateway.settle()
        start(gateway, mode="shadow", share=1.0)
        await gateway.settle()
        gateway.handles["release-2"]["retrieval"].hangs.add("similar")
        async with gateway.client() as http:
            paths = [f"/v1/users/{user}/similar" for user in gateway.served.release.user_ids]
            answers = await asyncio.gather(*(http.get(path) for path in paths))
            assert {(one.status_code, one.json()["release"]) for one in answers} == {(200, "release-1")}
            assert not any("degraded" in one.json() for one in answers)
            recorder, deadline = gateway.engine.split.recorder, time.monotonic() + 20
            while recorder.dropped + recorder.counts().total("candidate", "computed").requests < len(paths):
                assert time.monotonic() < deadline
                await asyncio.sleep(0.05)
        computed = recorder.counts().total("candidate", "computed")
        assert recorder.dropped > 0  # how many depends on how fast the answers came
        assert computed.errors == computed.requests >= 8

    asyncio.run(ask())


def test_a_promoted_canary_goes_on_with_the_engine_that_is_open(gateway: Gateway) -> None:
    async def ask() -> None:
        await gateway.settle()
        start(gateway)
        await gateway.settle()
        candidate = gateway.opened["release-2"]
        gateway.canaries.promote(by="", reason="good")
        await gateway.settle()
        assert gateway.engine is candidate
        assert gateway.canaries.read().ended[0].state == "promoted"
        Registry(gateway.workspace).rollback(reason="not so good")
        await gateway.settle()
        assert gateway.engine is gateway.served.engine

    asyncio.run(ask())


def test_another_promotion_ends_the_trial_and_a_stopped_one_is_gone_at_the_next_look(gateway: Gateway) -> None:
    async def ask() -> None:
        await gateway.settle()
        start(gateway)
        await gateway.settle()
        Registry(gateway.workspace).promote("release-3", reason="urgent")
        await gateway.settle()
        assert gateway.engine.release_id == "release-3"
        ended = gateway.canaries.read().ended[0]
        assert (ended.state, ended.reason) == ("stopped", "release-3 was promoted")
        Registry(gateway.workspace).promote("release-1", reason="back")
        await gateway.settle()
        start(gateway, "release-3")
        await gateway.settle()
        assert isinstance(gateway.engine, SplitEngine)
        gateway.canaries.stop(by="", reason="enough")
        await gateway.serving.look()  # of the trial's loop alone
        await gateway.serving.follower.step()
        assert gateway.engine is gateway.served.engine

    asyncio.run(ask())


def test_a_share_that_rises_keeps_who_was_in(gateway: Gateway) -> None:
    users = gateway.served.release.user_ids

    async def ask() -> list[set[str]]:
        await gateway.settle()
        start(gateway, share=0.1)
        found = []
        async with gateway.client() as http:
            for share in (0.2, 0.5, 1.0):
                gateway.canaries.set_share(share)
                await gateway.settle()
                answers = [(await http.get(f"/v1/users/{user}")).json() for user in users]
                found.append({one["user_id"] for one in answers if one["release"] == "release-2"})
        return found

    fifth, half, everybody = asyncio.run(ask())
    assert fifth < half < everybody == set(users)


def test_a_damaged_canary_file_leaves_what_is_served(gateway: Gateway) -> None:
    async def ask() -> None:
        await gateway.settle()
        start(gateway)
        await gateway.settle()
        (gateway.workspace.releases / "CANARY").write_bytes(b"{")
        await gateway.serving.follower.step()
        with pytest.raises(Exception, match="cannot be read"):
            await gateway.serving.look()
        assert isinstance(gateway.engine, SplitEngine)
        Registry(gateway.workspace).promote("release-3", reason="still possible")
        await gateway.serving.follower.step()
        assert gateway.engine.release_id == "release-3"

    asyncio.run(ask())


def test_an_erasure_reaches_the_stores_of_all_served_releases_and_those_that_just_left(gateway: Gateway) -> None:
    async def ask() -> dict[str, Any]:
        await gateway.settle()
        gateway.canaries.also("release-3")
        start(gateway)
        await gateway.settle()
        gateway.canaries.stop(by="", reason="")  # release-2 closes in a minute, and may come back before
        await gateway.settle()
        async with gateway.client() as http:
            told: dict[str, Any] = (await http.delete("/v1/users/user-5")).json()
        return told

    told = asyncio.run(ask())
    assert (told["release"], told["profile_removed"], told["refresh_awaited"]) == ("release-1", True, True)
    assert set(gateway.opened) == {"release-1", "release-2", "release-3"}
    for engine in gateway.opened.values():
        assert engine.store.get("user-5") is None
        assert engine.store.get("user-6") is not None


def test_who_was_erased_while_a_release_was_closed_is_not_there_when_it_comes_back(gateway: Gateway) -> None:
    async def ask() -> int:
        with Release.open(gateway.workspace, "release-2").open_store() as store:  # as an earlier trial left it
            assert store.get("user-5") is not None
        async with gateway.client() as http:
            assert (await http.delete("/v1/users/user-5")).status_code == 200
            await gateway.settle()
            start(gateway, share=1.0)
            await gateway.settle()
            answer = (await http.get("/v1/users/user-5?release=release-2")).json()
        assert gateway.opened["release-2"].store.get("user-6") is not None
        return int(answer["num_events"])

    assert asyncio.run(ask()) == 0


def test_the_refresh_follows_every_served_release(
    new_release: Callable[[], TinyRelease], another_release: Callable[[TinyRelease, str], str]
) -> None:
    from services.embedding.deployment import Embedding
    from services.scoring.deployment import Scoring
    from services.segmentation.deployment import Segmentation
    from tests.services.conftest import LocalHandle

    release = new_release()
    for name in ("release-2", "release-3"):
        another_release(release, name)
    canaries = Canaries(release.workspace)
    canaries.also("release-3")
    uri = release.workspace.root.uri
    handles = [LocalHandle(kind(workspace=uri, release=release.release)) for kind in (Embedding, Segmentation, Scoring)]

    async def follow() -> None:
        refresh = Refresh(uri, None, *handles)
        await refresh.check_health()
        canaries.start("release-2", by="", reason="")
        at_us = release.as_of_us + 5
        event = OnlineEvent("e-1", "someone", "item-3", "buy", at_us, accepted_us=at_us)
        refresh._log.append_all([[event]])
        deadline, follower = time.monotonic() + 60, refresh._follower
        while True:
            await asyncio.sleep(0.1)
            assert time.monotonic() < deadline, (follower.release, list(follower.beside))
            stores = {follower.release: follower.part.store} | {r: part.store for r, part in follower.beside.items()}
            if len(stores) == 3 and all(store.get("someone") for store in stores.values()):
                break
        assert orjson.loads(stores["release-2"].get("someone").body)["num_events"] == 1  # type: ignore[union-attr]
        assert refresh._following is not None
        refresh._following.cancel()
        for part in (follower.part, *follower.beside.values()):
            await refresh._retire(part)

    asyncio.run(follow())


def test_a_gateway_of_one_release_for_good_serves_nothing_beside_it(gateway: Gateway) -> None:
    gateway.canaries.also("release-2")
    start(gateway, "release-3", share=1.0)
    assigned: list[Any] = []
    serving = Serving(gateway.workspace, "release-1", opened=gateway.open, assign=assigned.append)
    asyncio.run(serving.follower.step())
    assert assigned == [gateway.served.engine]


def test_the_workspace_of_a_gateway_holds_its_counts(gateway: Gateway) -> None:
    async def ask() -> Trial:
        await gateway.settle()
        trial = start(gateway)
        await gateway.settle()
        async with gateway.client() as http:
            for user in gateway.served.release.user_ids:
                await http.get(f"/v1/users/{user}")
        gateway.serving._wrote_s = 0.0
        await gateway.serving.look()
        return trial

    trial = asyncio.run(ask())
    folder = Workspace.at(gateway.workspace.root.uri).canary_counts(trial.id)
    counts = canary_counts.read_counts(folder, now_s=time.time())
    in_it = sum(release_of(trial, user) == "release-2" for user in gateway.served.release.user_ids)
    assert counts.total("candidate", "stored").requests == in_it
    assert counts.total("served", "stored").requests == 24 - in_it
    assert counts.gateways == 1
