"""Two releases behind one gateway, over real engines: what is counted and compared, and a candidate that breaks."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from services.gateway import arms
from services.gateway import serving as serving_module
from services.gateway import shadow as shadow_module
from services.gateway.split import SplitEngine
from sonder.core.workspace import Workspace
from sonder.releases import canary_counts
from sonder.releases.canary import Trial
from tests.services.canary_gateway import ARROW, Gateway, of_three_releases, release_of, start, timeless

if TYPE_CHECKING:
    from conftest import Served, TinyRelease


@pytest.fixture
def gateway(own_served: Served, another_release: Callable[[TinyRelease, str], str]) -> Iterator[Gateway]:
    with of_three_releases(own_served, another_release) as made:
        yield made


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
