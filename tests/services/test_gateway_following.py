"""A promotion reaches a running application without a restart: following, and the whole of it over real engines."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import httpx
import pytest

from services.gateway.following import ReleaseFollower
from services.gateway.http import create_app
from services.gateway.opening import open_engine
from services.gateway.refresh import Refresher
from services.gateway.stages import HandleStages
from sonder.core.errors import NotFound
from sonder.events.erasure import read_erasures
from sonder.profiles.loading import drop_erased
from sonder.releases.artefacts import Release

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from conftest import Served, TinyRelease


class Parts:
    """Names stand for what a release is opened to; `served` is what CURRENT says."""

    def __init__(self) -> None:
        self.served, self.opened, self.active, self.retired = "a", list[str](), list[str](), list[str]()
        self.fails: set[str] = set()

    def follower(self, grace_s: float) -> ReleaseFollower[str]:
        return ReleaseFollower(
            "a",
            "part a",
            served=lambda: self.served,
            opened=self.open,
            activate=self.activate,
            retire=self.retire,
            grace_s=grace_s,
        )

    def open(self, release: str) -> str:
        self.opened.append(release)
        return f"part {release}"

    async def activate(self, part: str) -> None:
        if part in self.fails:
            raise NotFound(part)
        self.active.append(part)

    async def retire(self, part: str) -> None:
        self.retired.append(part)


def test_the_new_part_is_active_before_the_old_one_is_closed() -> None:
    parts = Parts()
    follower = parts.follower(grace_s=0.0)

    async def follow() -> list[bool]:
        changed = [await follower.step()]
        parts.served = "b"
        changed += [await follower.step()]
        assert parts.retired == []
        return [*changed, await follower.step()]

    assert asyncio.run(follow()) == [False, True, False]
    assert (parts.active, parts.retired, follower.release) == (["part a", "part b"], ["part a"], "b")


def test_a_switch_back_within_the_grace_takes_the_old_part_again() -> None:
    parts = Parts()
    follower = parts.follower(grace_s=60.0)

    async def follow() -> None:
        for release in ("a", "b", "a", "b"):
            parts.served = release
            await follower.step()

    asyncio.run(follow())
    assert (parts.opened, parts.retired) == (["b"], [])
    assert follower.part == "part b"


def test_a_release_that_cannot_be_served_leaves_the_old_one_and_is_closed() -> None:
    parts = Parts()
    parts.fails = {"part b"}
    follower = parts.follower(grace_s=60.0)

    async def follow() -> None:
        await follower.step()
        parts.served = "b"
        with pytest.raises(NotFound):
            await follower.step()
        assert (follower.release, parts.retired) == ("a", ["part b"])
        parts.fails = set()
        await follower.step()

    asyncio.run(follow())
    assert (follower.release, parts.opened) == ("b", ["b", "b"])


class Beside(Parts):
    """The same, with releases beside the served one; `shown` is what was there each time that something changed."""

    def __init__(self) -> None:
        super().__init__()
        self.wanted: list[str] | Exception = []
        self.shown: list[tuple[str, list[str]]] = []

    def follower(self, grace_s: float) -> ReleaseFollower[str]:
        made = super().follower(grace_s)

        def wants(served: str) -> list[str]:
            if isinstance(self.wanted, Exception):
                raise self.wanted
            return [release for release in self.wanted if release != served]

        async def changed() -> None:
            self.shown.append((made.release, sorted(made.beside)))

        made._wants_beside, made._changed = wants, changed
        return made


async def looked(follower: ReleaseFollower[str]) -> None:
    """As many looks as it takes until nothing is being opened."""
    for _ in range(3):
        await follower.step()
        for task in list(follower._opening.values()):
            await asyncio.wait([task])


def test_what_is_wanted_beside_is_opened_behind_the_back_of_the_served_one_and_leaves_at_once() -> None:
    parts = Beside()
    follower = parts.follower(grace_s=60.0)

    async def follow() -> None:
        await looked(follower)
        parts.wanted = ["b", "c"]
        await looked(follower)
        parts.wanted = ["c"]
        await follower.step()
        parts.wanted = ["c", "b"]
        await follower.step()  # it was still open

    asyncio.run(follow())
    assert parts.shown == [("a", []), ("a", ["b", "c"]), ("a", ["c"]), ("a", ["b", "c"])]
    assert (sorted(parts.opened), parts.retired) == (["b", "c"], [])


def test_a_switch_between_two_that_are_open_opens_nothing_and_never_shows_less_than_is_wanted() -> None:
    parts = Beside()
    follower = parts.follower(grace_s=60.0)

    async def follow() -> None:
        parts.wanted = ["a", "b"]
        await looked(follower)
        for release in ("b", "a"):
            parts.served = release
            await looked(follower)

    asyncio.run(follow())
    assert parts.shown == [("a", []), ("a", ["b"]), ("b", ["a"]), ("a", ["b"])]
    assert (parts.opened, parts.retired) == (["b"], [])


def test_one_that_is_slow_to_open_or_fails_keeps_nobody_from_a_promotion() -> None:
    parts = Beside()
    parts.fails = {"part slow"}
    follower = parts.follower(grace_s=60.0)
    waiting = asyncio.Event()

    async def activate(part: str) -> None:
        if part == "part slow":
            await waiting.wait()
        await parts.activate(part)

    follower._activate = activate

    async def follow() -> None:
        await follower.step()
        parts.wanted = ["slow"]
        await follower.step()
        parts.served = "b"
        assert await follower.step() is True
        assert (follower.release, follower.beside) == ("b", {})
        waiting.set()
        await looked(follower)  # it fails, is closed, and waits before the next try
        assert (parts.opened.count("slow"), parts.retired) == (1, ["part slow"])
        parts.fails, follower._failed["slow"] = set(), (0.0, 1.0)
        await looked(follower)
        assert list(follower.beside) == ["slow"]

    asyncio.run(follow())


def test_one_that_arrives_too_late_is_closed_and_an_unreadable_wish_changes_nothing() -> None:
    parts = Beside()
    follower = parts.follower(grace_s=60.0)

    async def follow() -> None:
        await follower.step()
        parts.wanted = ["b"]
        await follower.step()
        parts.wanted = []
        await asyncio.wait(list(follower._opening.values()))
        await follower.step()
        assert (follower.beside, parts.retired) == ({}, ["part b"])
        parts.wanted = ["b"]
        await looked(follower)
        parts.wanted = NotFound("the store is away")
        await looked(follower)
        assert list(follower.beside) == ["b"]
        parts.served = "c"
        await follower.step()
        assert (follower.release, list(follower.beside)) == ("c", ["b"])

    asyncio.run(follow())


def test_an_engine_of_another_release_gets_every_part_from_that_release(
    own_served: Served, another_release: Callable[[TinyRelease, str], str]
) -> None:
    release_id = another_release(own_served.release, "release-2")
    opened = Release.open(own_served.release.workspace, release_id)
    stages = HandleStages(**own_served.handles).of(release_id)
    engine = open_engine(opened, stages, log=own_served.log)
    app = create_app(own_served.engine)

    async def switch() -> list[dict[str, object]]:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://sonder") as http:
            before = (await http.get("/v1/users/user-1?fresh=true")).json()
            assert await engine.is_ready()
            app.state.engine = engine
            return [before, (await http.get("/v1/users/user-1?fresh=true")).json()]

    before, after = asyncio.run(switch())
    assert (before.pop("release"), after.pop("release")) == ("release-1", "release-2")
    assert "degraded" not in after
    assert {**before, "age_ms": 0, "computed_at": ""} == {**after, "age_ms": 0, "computed_at": ""}
    engine.close(with_log=False)
    assert own_served.get("/v1/users/user-1")["num_events"]  # the log is still open


def test_who_was_erased_while_a_store_was_loaded_is_taken_out_of_it(
    own_served: Served, another_release: Callable[[TinyRelease, str], str]
) -> None:
    own_served.request("DELETE", "/v1/users/user-2")
    profiles = own_served.release.workspace.release(own_served.release.release) / "profiles"
    release_id = another_release(own_served.release, "release-2")
    opened = Release.open(own_served.release.workspace, release_id)
    with opened.open_store(writable=True) as store:
        assert store.get("user-2") is None  # the load read the tombstones
    erased = read_erasures(own_served.release.workspace.erasures)
    own_served.store.put_many([("user-2", own_served.store.get("user-1"))])  # type: ignore[list-item]
    assert drop_erased(own_served.store, profiles, erased) == 1
    assert own_served.store.get("user-2") is None
    again = own_served.store.get("user-1")._replace(computed_at_us=max(erased.values()) + 1)  # type: ignore[union-attr]
    own_served.store.put_many([("user-2", again)])  # who came back after the erasure
    assert drop_erased(own_served.store, profiles, erased) == 0
    assert own_served.store.get("user-2") is not None
    assert own_served.store.get("user-1") is not None


def test_a_second_refresh_waits_for_the_lock_of_the_first_and_a_stopped_one_gives_it_up(
    own_served: Served, tmp_path: Path
) -> None:
    async def run() -> None:
        first, second = own_served.refresher(), own_served.refresher()
        steps: list[Refresher] = []
        for one in (first, second):
            one.step = _counted(one, steps)  # type: ignore[method-assign]
        running = [asyncio.create_task(first.run(tmp_path / "lock"))]
        await asyncio.sleep(0.05)
        running.append(asyncio.create_task(second.run(tmp_path / "lock")))
        await asyncio.sleep(0.5)
        assert set(steps) == {first}
        first.stop()
        await asyncio.wait_for(running[0], 5)
        while second not in steps:
            await asyncio.sleep(0.05)
        second.stop()
        await asyncio.wait_for(running[1], 5)

    asyncio.run(run())


def _counted(one: Refresher, steps: list[Refresher]):  # type: ignore[no-untyped-def]
    async def step() -> int:
        steps.append(one)
        return 0

    return step
