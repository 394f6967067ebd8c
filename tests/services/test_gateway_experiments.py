"""Experiments in a gateway over real engines: who is answered by which arm, what is an exposure, and what is none."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import polars as pl
import pyarrow as pa
import pytest

from services.gateway.engine import Engine
from sonder.experiments.versions import Version
from sonder.releases.registry import Registry

if TYPE_CHECKING:
    from conftest import TinyRelease
from tests.services.experiment_gateway import (
    ARMS,
    ARROW,
    BY_RANKING,
    SAID,
    USER_ROUTES,
    Lab,
    arms_of,
    lab_over_copy,
    of_three_releases,
    spec,
    timeless,
)


@pytest.fixture(scope="module")
def three_releases(new_release: Callable[[], TinyRelease], another_release: Callable[[TinyRelease, str], str]) -> Any:
    return of_three_releases(new_release, another_release)


@pytest.fixture
def lab(three_releases: TinyRelease, tmp_path: Path, serving: Any) -> Iterator[Lab]:
    with lab_over_copy(three_releases, tmp_path, serving) as made:
        yield made


# -- releases --------------------------------------------------------------------------------------------------------


def test_users_get_the_release_of_their_arm_by_every_route_and_every_answer_is_an_exposure(lab: Lab) -> None:
    async def ask() -> Version:
        [version] = await lab.run(spec(share=0.6))
        expected = arms_of(version, lab.users, 0.6)
        async with lab.client() as http:
            for user in lab.users:
                arm = expected[user]
                release = "release-2" if arm == "treatment" else "release-1"
                answers = await asyncio.gather(*(http.get(f"/v1/users/{user}{part}") for part in USER_ROUTES))
                assert {one.status_code for one in answers} == {200}
                assert {one.json()["release"] for one in answers} == {release}
                assert {one.headers.get(ARMS) for one in answers} == {arm and f"first={arm}"}
        return version

    version = asyncio.run(ask())
    expected = arms_of(version, lab.users, 0.6)
    assert set(expected.values()) == {None, "control", "treatment"}
    rows = lab.exposures()
    assert dict(rows.select("user_id", "arm").rows()) == {user: arm for user, arm in expected.items() if arm}
    assert rows.height == sum(arm is not None for arm in expected.values())  # once an hour
    assert dict(rows.select("arm", "release").rows()) == {"control": "release-1", "treatment": "release-2"}
    assert set(rows["version"]) == {version.version}


@pytest.mark.parametrize(("route", "surface"), USER_ROUTES.items())
def test_each_route_exposes_by_itself(lab: Lab, route: str, surface: str) -> None:
    async def ask() -> None:
        await lab.run(spec())
        async with lab.client() as http:
            assert (await http.get(f"/v1/users/user-1{route}")).status_code == 200

    asyncio.run(ask())
    assert lab.exposures().select("user_id", "surface").rows() == [("user-1", surface)]


def test_what_could_not_differ_is_no_exposure(lab: Lab) -> None:
    paths = [
        "/v1/items/item-3/similar",
        "/v1/release",
        "/v1/experiments",
        "/v1/experiments/first/assignment?user_id=user-1",
        "/v1/users/user-1?release=release-1",
        "/v1/users/user-1/recommendations?release=release-2",
        "/healthz",
        "/readyz",
    ]

    async def ask() -> None:
        await lab.run(spec())
        async with lab.client() as http:
            answers = [await http.get(path) for path in paths]
            answers.append(await http.get("/v1/users/user-1", headers={"x-sonder-release": "release-2"}))
            answers.append(await http.post("/v1/audiences:preview", json={"rule": "num_events > 0"}))
            answers.append(await http.post("/v1/users:batchGet?release=release-1", json={"user_ids": ["user-1"]}))
            assert {one.status_code for one in answers} == {200}
            assert not any(ARMS in one.headers for one in answers)
            assert (await http.get("/v1/users/user-1?fields=mood")).status_code == 422

    asyncio.run(ask())
    assert lab.exposures().height == 0


def test_a_batch_is_answered_in_order_by_the_arms_of_its_users_and_exposes_them(lab: Lab) -> None:
    from services.gateway.rpc import sonder_pb2 as pb
    from services.gateway.rpc.requests import METHODS, to_message

    users = [*lab.users, "nobody", lab.served.release.shown_only, "user-3"]

    async def ask(headers: dict[str, str]) -> httpx.Response:
        async with lab.client() as http:
            return await http.post("/v1/users:batchGet", json={"user_ids": users}, headers=headers)

    async def all_ways() -> Version:
        [version] = await lab.run(spec(share=0.6))
        arms = arms_of(version, users, 0.6)
        expected = ["release-2" if arms[user] == "treatment" else "release-1" for user in users]
        answer = (await ask({})).json()
        assert answer["release"] == "release-1"
        assert [one["user_id"] for one in answer["profiles"]] == users
        assert [one["release"] for one in answer["profiles"]] == expected
        table = pa.ipc.open_stream((await ask(ARROW)).content).read_all()
        assert table.column("user_id").to_pylist() == users
        assert table.column("release").to_pylist() == expected
        asked = pb.BatchGetProfilesRequest(user_ids=users)
        message: Any = to_message(pb.Profiles, await METHODS["BatchGetProfiles"].answer(lab.engine, asked))
        assert [one.release for one in message.profiles] == expected
        return version

    version = asyncio.run(all_ways())
    rows = lab.exposures()
    assert dict(rows.select("user_id", "arm").rows()) == {u: a for u, a in arms_of(version, users, 0.6).items() if a}
    assert set(rows["surface"]) == {"profiles"}
    assert dict(rows.select("arm", "release").rows()) == {"control": "release-1", "treatment": "release-2"}


def test_answers_of_a_single_method_over_grpc_can_be_made_into_messages(lab: Lab) -> None:
    from services.gateway.rpc import sonder_pb2 as pb
    from services.gateway.rpc.requests import METHODS, to_message
    from services.gateway.told import arms_of as told

    async def ask() -> None:
        [version] = await lab.run(spec())
        content = await METHODS["GetProfile"].answer(lab.engine, pb.GetProfileRequest(user_id="user-1"))
        message: Any = to_message(pb.Profile, content)
        assert told(content) == f"first={arms_of(version, ['user-1'])['user-1']}"
        assert message.user_id == "user-1"

    asyncio.run(ask())


def test_a_promotion_changes_no_arm_and_everybody_else(lab: Lab) -> None:
    async def ask() -> None:
        [version] = await lab.run(spec(share=0.5))
        expected = arms_of(version, lab.users, 0.5)
        Registry(lab.workspace).promote("release-3", reason="meanwhile")
        await lab.settle()
        releases = {None: "release-3", "control": "release-1", "treatment": "release-2"}
        async with lab.client() as http:
            for user in lab.users:
                assert (await http.get(f"/v1/users/{user}")).json()["release"] == releases[expected[user]]
            assert (await http.get("/v1/release")).json()["also"] == ["release-2", "release-1"]
        lab.experiments.stop("first", **SAID)
        await lab.settle()
        assert isinstance(lab.engine, Engine)
        assert lab.engine.release_id == "release-3"

    asyncio.run(ask())


def test_where_an_arms_release_fails_the_served_one_answers_and_the_user_stays_exposed_to_the_arm(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def ask() -> str:
        [version] = await lab.run(spec())
        treated = next(user for user, arm in arms_of(version, lab.users).items() if arm == "treatment")

        def away(*_: Any) -> None:
            raise OSError("the disk is gone")

        for method in ("get", "batch_get"):
            monkeypatch.setattr(lab.opened["release-2"].store, method, away)
        async with lab.client() as http:
            for part in ("", "?fresh=true", "/similar", "/recommendations", "/explanation"):
                answer = await http.get(f"/v1/users/{treated}{part}")
                assert (answer.status_code, answer.json()["release"]) == (200, "release-1")
                assert answer.headers[ARMS] == "first=treatment"
            batch = await http.post("/v1/users:batchGet", json={"user_ids": [treated, "nobody"]})
            assert [one["release"] for one in batch.json()["profiles"]] == ["release-1"] * 2
        return treated

    treated = asyncio.run(ask())
    rows = lab.exposures().filter(pl.col("user_id") == treated)
    assert rows.select("arm", "release").rows() == [("treatment", "release-1")]


def test_nobody_is_assigned_before_the_releases_of_all_arms_are_open(lab: Lab) -> None:
    async def ask() -> None:
        await lab.settle()
        lab.experiments.start(spec(), **SAID)
        await lab.serving.look_at_experiments()  # of its own loop; the follower has not opened release-2 yet
        async with lab.client() as http:
            assert ARMS not in (await http.get("/v1/users/user-1")).headers
            told = (await http.get("/v1/experiments/first/assignment?user_id=user-1")).json()
            assert (told["arm"], told["reason"]) == (None, "not served here yet")
            await lab.settle()
            assert ARMS in (await http.get("/v1/users/user-1")).headers

    asyncio.run(ask())
    assert lab.exposures().height == 1


# -- rankings --------------------------------------------------------------------------------------------------------


def test_ranking_arms_change_recommendations_alone_and_only_those_expose(lab: Lab) -> None:
    async def ask() -> Version:
        [version] = await lab.run(spec(arms=BY_RANKING))
        expected = arms_of(version, lab.users)
        async with lab.client() as http:
            for user in lab.users:
                others = [part for part, surface in USER_ROUTES.items() if surface != "recommendations"]
                answers = [await http.get(f"/v1/users/{user}{part}") for part in others]
                assert not any(ARMS in one.headers for one in answers)
                answer = await http.get(f"/v1/users/{user}/recommendations?seen=true&k=6")
                query = "from=interests&diversity=0.7" if expected[user] == "treatment" else "from=vector&diversity=0"
                wished = await http.get(f"/v1/users/{user}/recommendations?seen=true&k=6&{query}")
                assert timeless(answer.content) == timeless(wished.content)
                assert answer.headers[ARMS] == f"first={expected[user]}"
                assert ARMS not in wished.headers
        return version

    version = asyncio.run(ask())
    rows = lab.exposures()
    assert dict(rows.select("user_id", "arm").rows()) == arms_of(version, lab.users)
    assert set(rows["surface"]) == {"recommendations"}
    assert set(rows["release"]) == {"release-1"}


@pytest.mark.parametrize(
    ("ranking", "query", "is_exposed"),
    [
        ({"source": "interests"}, "", True),
        ({"source": "interests"}, "?from=vector", False),
        ({"source": "interests"}, "?from=interests", False),
        ({"source": "interests"}, "?diversity=0.5", True),
        ({"source": "interests"}, "?k=3&category=shop&seen=true&max_age_days=900", True),
        ({"diversity": 0.5}, "?diversity=0", False),
        ({"diversity": 0.5}, "?from=interests", True),
        ({"source": "interests", "diversity": 0.5}, "?from=vector", True),
        ({"source": "interests", "diversity": 0.5}, "?from=vector&diversity=0.1", False),
    ],
)
def test_what_a_caller_asks_for_itself_goes_first_and_exposes_nobody_where_nothing_is_left(
    lab: Lab, ranking: dict[str, Any], query: str, is_exposed: bool
) -> None:
    async def ask() -> bool:
        await lab.run(spec(arms=[{"name": "control"}, {"name": "treatment", "ranking": ranking}]))
        async with lab.client() as http:
            answer = await http.get(f"/v1/users/user-1/recommendations{query}")
            return ARMS in answer.headers

    assert asyncio.run(ask()) is is_exposed
    assert lab.exposures().height == is_exposed


def test_a_cold_user_gets_what_is_popular_in_every_arm_and_is_exposed_to_none(lab: Lab) -> None:
    async def ask() -> None:
        await lab.run(spec(arms=BY_RANKING))
        async with lab.client() as http:
            answer = await http.get("/v1/users/nobody/recommendations")
            assert (answer.json()["fallback"], ARMS in answer.headers) == ("popular", False)

    asyncio.run(ask())
    assert lab.exposures().height == 0


def test_a_release_and_a_ranking_may_be_on_trial_at_once(lab: Lab) -> None:
    async def ask() -> Version:
        first, second = await lab.run(spec(), spec("second", BY_RANKING, share=0.7))
        of_first, of_second = arms_of(first, lab.users), arms_of(second, lab.users, 0.7)
        async with lab.client() as http:
            for user in lab.users:
                answer = await http.get(f"/v1/users/{user}/recommendations")
                told = [f"first={of_first[user]}", *([f"second={of_second[user]}"] if of_second[user] else [])]
                assert answer.headers[ARMS].split(", ") == told
                assert (answer.json()["release"] == "release-2") == (of_first[user] == "treatment")
                assert (await http.get(f"/v1/users/{user}")).headers[ARMS] == told[0]
        return second

    second = asyncio.run(ask())
    assert lab.exposures("first").height == len(lab.users)
    assert lab.exposures("second").height == sum(arm is not None for arm in arms_of(second, lab.users, 0.7).values())
    assert {*lab.exposures("second")["release"]} == {"release-1", "release-2"}
