"""Two releases behind one gateway, over real engines: how a trial ends, and who is erased or refreshed meanwhile."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import orjson
import pytest

from services.gateway.deployment import Refresh
from services.gateway.serving import Serving
from services.gateway.split import SplitEngine
from sonder.events.online import OnlineEvent
from sonder.releases.artefacts import Release
from sonder.releases.canary import Canaries
from sonder.releases.registry import Registry
from tests.services.canary_gateway import Gateway, of_three_releases, start

if TYPE_CHECKING:
    from conftest import Served, TinyRelease


@pytest.fixture
def gateway(own_served: Served, another_release: Callable[[TinyRelease, str], str]) -> Iterator[Gateway]:
    with of_three_releases(own_served, another_release) as made:
        yield made


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
