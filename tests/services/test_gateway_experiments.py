"""Experiments in a gateway over real engines: who is answered by which arm, what is an exposure, and what is none."""

from __future__ import annotations

import asyncio
import dataclasses
import re
import shutil
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import polars as pl
import pyarrow as pa
import pytest

from services.gateway import exposing
from services.gateway.engine import Engine
from services.gateway.experimenting import ExperimentEngine
from services.gateway.schemas import AssignmentAnswer, ExperimentsAnswer
from sonder.client import AsyncClient
from sonder.core.errors import InvalidRequest, NotFound
from sonder.core.storage import Folder
from sonder.core.workspace import Workspace
from sonder.experiments.assignment import assign_users
from sonder.experiments.exposure_files import read_exposures, read_shown
from sonder.experiments.registry import Experiments
from sonder.experiments.specification import Experiment
from sonder.experiments.versions import Version
from sonder.releases.registry import Registry
from tests.services.canary_gateway import Gateway
from tests.services.canary_gateway import start as start_canary

if TYPE_CHECKING:
    from conftest import Served, TinyRelease

ARROW = {"accept": "application/vnd.apache.arrow.stream"}
ARMS = "x-sonder-experiment"
BY_RELEASE = [{"name": "control"}, {"name": "treatment", "release": "release-2"}]
BY_RANKING = [{"name": "control"}, {"name": "treatment", "ranking": {"source": "interests", "diversity": 0.7}}]
SAID = {"by": "a test", "reason": ""}
USER_ROUTES = {
    "": "profile",
    "?fields=scores": "profile",
    "?fresh=true": "profile",
    "/scores": "profile",
    "/segments?fresh=true": "profile",
    "/embedding": "profile",
    "/interests": "profile",
    "/affinities": "profile",
    "/recommendations": "recommendations",
    "/recommendations?from=vector&diversity=0": "recommendations",
    "/similar": "similar",
    "/explanation": "explanation",
}


def spec(name: str = "first", arms: Any = None, **changes: Any) -> Experiment:
    metric = {"name": "buyers", "kind": "conversion", "action": "buy", "within_days": 7}
    content = {"name": name, "hypothesis": "more is bought", "arms": arms or BY_RELEASE, "metrics": [metric]}
    return Experiment.model_validate({**content, "primary": "buyers", "minimum_effect": 0.05, **changes})


class Lab(Gateway):
    """A gateway whose workspace has experiments."""

    def __init__(self, served: Served) -> None:
        super().__init__(served)
        self.experiments = Experiments(self.workspace)
        self.users = served.release.user_ids

    async def run(self, *specs: Experiment) -> list[Version]:
        await self.settle()
        started = [self.experiments.start(one, **SAID) for one in specs]
        await self.settle()
        return started

    def exposures(self, name: str = "first") -> pl.DataFrame:
        assert self.serving.exposures.flush() == 0
        return read_exposures(self.workspace.experiments, name)

    @asynccontextmanager
    async def sonder(self) -> AsyncIterator[AsyncClient]:
        async with AsyncClient("http://sonder", transport=httpx.ASGITransport(self.app)) as client:
            yield client


@pytest.fixture(scope="module")
def three_releases(new_release: Callable[[], TinyRelease], another_release: Callable[[TinyRelease, str], str]) -> Any:
    release = new_release()
    for name in ("release-2", "release-3"):
        another_release(release, name)
    return release


@pytest.fixture
def lab(three_releases: TinyRelease, tmp_path: Path, serving: Any) -> Iterator[Lab]:
    """Over a copy of its own."""
    shutil.copytree(three_releases.workspace.root.path, tmp_path / "workspace")
    release = dataclasses.replace(three_releases, workspace=Workspace.at(str(tmp_path / "workspace")))
    with serving(release, writable=True) as served:
        made = Lab(served)
        yield made
        made.close()


def arms_of(version: Version, users: list[str], share: float = 1.0) -> dict[str, str | None]:
    return dict(zip(users, assign_users(version.allocation(), users, share), strict=True))


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


def timeless(content: bytes) -> bytes:
    return re.sub(rb'"age_ms":\d+', b"", content)


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


# -- who takes part --------------------------------------------------------------------------------------------------


def test_batch_gateway_and_client_assign_five_thousand_users_alike(lab: Lab) -> None:
    users = [f"member {number}/ü" for number in range(5_000)]

    async def ask() -> Version:
        arms = [{"name": "control", "weight": 2}, {"name": "one", "release": "release-2"}]
        arms += [{"name": "two", "ranking": {"diversity": 0.3}}]
        await lab.run(spec("before", arms, share=0.25, layer="shared"))
        [version] = await lab.run(spec("first", arms, share=0.5, layer="shared"))
        in_batch = assign_users(version.allocation(), users, 0.5).to_list()
        told = [lab.serving.experiments.assignment("first", user) for user in users]
        assert [one["arm"] for one in told] == in_batch
        async with lab.sonder() as sonder:
            assert [await sonder.assign("first", user) for user in users] == in_batch
            asked = await asyncio.gather(*(sonder.assignment("first", user) for user in users[:300]))
            assert [one["arm"] for one in asked] == in_batch[:300]
        live = next(one for one in lab.engine.lives if one.name == "first")
        assert [live.hold(user) for user in users] == in_batch
        reasons = {(one["arm"] is None, one["reason"], one["exposure"]) for one in told}
        assert reasons == {(True, "not in share", False), (False, "assigned", False)}
        return version

    version = asyncio.run(ask())
    assert version.lower == 0.25
    assert lab.exposures().height == 0


def test_a_ramp_adds_users_and_moves_none(lab: Lab) -> None:
    clock = datetime.now(UTC) + timedelta(hours=1)

    async def ask() -> list[dict[str, str]]:
        nonlocal clock
        ramp = [{"share": 0.2, "hours": 24}, {"share": 0.5, "hours": 24}, {"share": 1.0, "hours": 24}]
        lab.serving.experiments._now = lambda: clock
        await lab.run(spec(ramp=ramp))
        found = []
        for _ in range(3):
            engine = lab.engine
            await lab.settle()
            assert lab.engine is engine  # a share alone changes nothing that is open
            async with lab.client() as http:
                answers = {user: (await http.get(f"/v1/users/{user}")).headers.get(ARMS) for user in lab.users}
                share = (await http.get("/v1/experiments")).json()["experiments"][0]["share"]
            assert share == ramp[len(found)]["share"]
            found.append({user: arm for user, arm in answers.items() if arm})
            clock += timedelta(hours=24)
        return found

    fifth, half, everybody = asyncio.run(ask())
    assert set(fifth) < set(half) < set(everybody) == set(lab.users)
    assert fifth.items() <= half.items() <= everybody.items()


def test_only_who_is_eligible_takes_part_and_who_is_unknown_is_not(lab: Lab) -> None:
    many = sorted(user for user in lab.users if lab.served.get(f"/v1/users/{user}")["num_events"] > 15)
    assert 0 < len(many) < len(lab.users)

    async def ask() -> None:
        rule = "num_events > 15 and count(buy, 3650d) >= 1 and not is_cold"
        [version] = await lab.run(spec(eligibility=rule))
        expected = arms_of(version, lab.users)
        async with lab.client() as http, lab.sonder() as sonder:
            for user in [*lab.users, "nobody", lab.served.release.shown_only]:
                is_in = user in many
                answer = await http.get(f"/v1/users/{user.replace('/', '%2F')}")
                assert answer.headers.get(ARMS) == (f"first={expected[user]}" if is_in else None)
                told = await sonder.assignment("first", user)
                assert (told["arm"], told["reason"]) == (
                    (expected[user], "assigned") if is_in else (None, "not eligible")
                )
                assert await sonder.assign("first", user, is_eligible=is_in) == told["arm"]
            with pytest.raises(InvalidRequest, match="is_eligible"):
                await sonder.assign("first", "user-1")

    asyncio.run(ask())
    assert lab.exposures()["user_id"].sort().to_list() == many


def test_a_rule_that_names_what_the_release_does_not_have_does_not_start(lab: Lab) -> None:
    with pytest.raises(InvalidRequest, match="unheard"):
        lab.experiments.start(spec(eligibility="score.unheard > 0.5"), **SAID)


# -- interleaving ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arms", [BY_RELEASE, BY_RANKING])
def test_an_interleaved_list_holds_both_arms_and_every_slot_is_written_down(lab: Lab, arms: Any) -> None:
    async def ask() -> dict[str, Any]:
        [version] = await lab.run(spec(arms=arms, method="interleave", share=0.6))
        expected = arms_of(version, lab.users, 0.6)
        assert set(expected.values()) == {None, "interleaved"}
        shown = {}
        async with lab.client() as http:
            for user in lab.users:
                answer = await http.get(
                    f"/v1/users/{user}/recommendations?seen=true&k=6", headers={"x-request-id": f"q-{user}"}
                )
                assert answer.headers.get(ARMS) == (expected[user] and "first=interleaved")
                assert ARMS not in (await http.get(f"/v1/users/{user}")).headers
                items = [one["item_id"] for one in answer.json()["recommendations"]]
                assert [one["rank"] for one in answer.json()["recommendations"]] == [1, 2, 3, 4, 5, 6]
                assert len(set(items)) == 6
                if not expected[user]:
                    continue
                shown[user] = items
                again = await http.get(
                    f"/v1/users/{user}/recommendations?seen=true&k=6", headers={"x-request-id": f"q-{user}"}
                )
                assert timeless(again.content) == timeless(answer.content)
                queries = (
                    ("from=vector&diversity=0", "from=interests&diversity=0.7") if arms is BY_RANKING else ("",) * 2
                )
                both = [await http.get(f"/v1/users/{user}/recommendations?seen=true&k=6&{query}") for query in queries]
                if arms is BY_RANKING:
                    assert not any(ARMS in one.headers for one in both)
                    assert set(items) <= {one["item_id"] for x in both for one in x.json()["recommendations"]}
        return shown

    shown = asyncio.run(ask())
    assert lab.exposures().height == 0
    slots = read_shown(lab.workspace.experiments, "first").filter(pl.col("request_id").str.starts_with("q-"))
    assert slots.height == 6 * len(shown)
    for user, items in shown.items():
        rows = slots.filter(pl.col("user_id") == user).sort("position")
        assert rows["item_id"].to_list() == items
        assert rows["request_id"].unique().to_list() == [f"q-{user}"]
        assert sorted(rows["team"].to_list()) == ["a"] * 3 + ["b"] * 3


def test_nobody_is_shown_a_mixed_list_where_an_arm_has_no_ranking(lab: Lab) -> None:
    async def ask() -> None:
        await lab.run(spec(arms=BY_RELEASE, method="interleave"))
        async with lab.client() as http:
            cold = await http.get("/v1/users/nobody/recommendations")
            assert (cold.json()["fallback"], ARMS in cold.headers) == ("popular", False)
            lab.handles["release-1"]["retrieval"].fails["recommend"] = RuntimeError("broken")
            answer = await http.get("/v1/users/user-1/recommendations")
            assert (answer.status_code, answer.json()["release"], ARMS in answer.headers) == (200, "release-2", False)
            assert "degraded" not in answer.json()

    asyncio.run(ask())
    assert lab.exposures().height == 0
    assert read_shown(lab.workspace.experiments, "first").height == 0


# -- what runs -------------------------------------------------------------------------------------------------------


def test_with_no_experiment_nothing_is_on_the_way_of_a_request(lab: Lab) -> None:
    async def ask() -> None:
        await lab.settle()
        assert lab.engine is lab.served.engine
        await lab.run(spec(arms=BY_RANKING))
        assert isinstance(lab.engine, ExperimentEngine)
        lab.experiments.stop("first", **SAID)
        await lab.settle()
        assert lab.engine is lab.served.engine

    asyncio.run(ask())


def test_what_runs_is_told_as_documented_and_what_does_not_is_404(lab: Lab) -> None:
    async def ask() -> None:
        await lab.run(spec(share=0.5, layer="shared"), spec("second", BY_RANKING, method="interleave"))
        async with lab.client() as http:
            answer = await http.get("/v1/experiments")
            first, second = ExperimentsAnswer.model_validate_json(answer.content).experiments
            assert (first.name, first.share, first.layer, [arm.name for arm in first.arms]) == (
                "first",
                0.5,
                "shared",
                ["control", "treatment"],
            )
            assert [arm.name for arm in second.arms] == ["interleaved"]
            told = await http.get("/v1/experiments/first/assignment", params={"user_id": "käufer/1"})
            assert AssignmentAnswer.model_validate_json(told.content).user_id == "käufer/1"
            for path in ("unheard", "first%2Fx", "v001.json"):
                missing = await http.get(f"/v1/experiments/{path}/assignment?user_id=a")
                assert (missing.status_code, missing.headers["content-type"]) == (404, "application/problem+json")
            assert (await http.get("/v1/experiments/first/assignment")).status_code == 422
            assert (await http.get("/v1/experiments/first/assignment?user_id=")).status_code == 422
            lab.experiments.stop("first", **SAID)
            await lab.settle()
            assert (await http.get("/v1/experiments/first/assignment?user_id=a")).status_code == 404
            async with lab.sonder() as sonder:
                assert [one["name"] for one in await sonder.experiments()] == ["second"]
                with pytest.raises(NotFound, match="'first' is running"):
                    await sonder.assign("first", "a")

    asyncio.run(ask())


def test_an_experiment_whose_days_are_over_assigns_nobody_and_is_stopped(lab: Lab) -> None:
    async def ask() -> None:
        await lab.run(spec(max_days=2))
        later = datetime.now(UTC) + timedelta(days=2)
        lab.serving.experiments._now = lambda: later
        await lab.settle()
        async with lab.client() as http:
            assert ARMS not in (await http.get("/v1/users/user-1")).headers
        assert lab.experiments.show("first").state == "stopped"
        assert "2 days are over" in lab.experiments.show("first").reason
        await lab.settle()
        assert lab.engine is lab.served.engine

    asyncio.run(ask())


def test_a_damaged_file_leaves_what_is_served(lab: Lab) -> None:
    async def ask() -> None:
        [version] = await lab.run(spec())
        (lab.workspace.experiments / "RUNNING").write_bytes(b"{")
        await lab.serving.follower.step()
        with pytest.raises(Exception, match="cannot be read"):
            await lab.serving.look_at_experiments()
        async with lab.client() as http:
            answer = await http.get("/v1/users/user-1")
        assert answer.headers[ARMS] == f"first={arms_of(version, ['user-1'])['user-1']}"

    asyncio.run(ask())


def test_a_shadow_runs_beside_an_experiment_and_the_users_of_neither_mix(lab: Lab) -> None:
    async def ask() -> None:
        [version] = await lab.run(spec(share=0.5))
        start_canary(lab, mode="shadow", share=1.0)
        await lab.settle()
        expected = arms_of(version, lab.users, 0.5)
        async with lab.client() as http:
            for user in lab.users:
                answer = await http.get(f"/v1/users/{user}")
                assert answer.json()["release"] == ("release-2" if expected[user] == "treatment" else "release-1")
        await asyncio.sleep(0.1)
        served = lab.engine.split.recorder.counts().total("served", "stored").requests
        assert served == sum(arm is None for arm in expected.values())
        await lab.engine.split.shadow.close()

    asyncio.run(ask())


# -- exposures outlive -----------------------------------------------------------------------------------------------


def test_exposures_survive_a_graceful_stop(lab: Lab) -> None:
    async def ask() -> None:
        await lab.run(spec())
        async with lab.client() as http:
            for user in lab.users:
                await http.get(f"/v1/users/{user}")
        await lab.serving.close()

    asyncio.run(ask())
    assert read_exposures(lab.workspace.experiments, "first").height == len(lab.users)


def test_storage_that_fails_costs_no_request_and_no_exposure(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exposing, "FLUSH_S", 0.02)
    original, attempts = Folder.write_table, list[str]()

    def refused(self: Folder, table: Any) -> None:
        attempts.append(self.name)
        raise OSError("no space left on device")

    async def ask() -> None:
        await lab.run(spec())
        monkeypatch.setattr(Folder, "write_table", refused)
        writing = asyncio.create_task(lab.serving.exposures.run())
        async with lab.client() as http:
            while len(attempts) < 5:
                answers = await asyncio.gather(*(http.get(f"/v1/users/{user}") for user in lab.users))
                assert {one.status_code for one in answers} == {200}
        monkeypatch.setattr(Folder, "write_table", original)
        await asyncio.sleep(0.2)
        writing.cancel()

    asyncio.run(ask())
    assert lab.exposures()["user_id"].sort().to_list() == sorted(lab.users)


def test_an_erasure_removes_what_is_written_and_what_waits_and_counts_it(lab: Lab) -> None:
    async def ask() -> dict[str, Any]:
        await lab.run(spec(), spec("second", BY_RANKING, method="interleave"))
        async with lab.client() as http:
            for user in ("user-5", "user-6"):
                await http.get(f"/v1/users/{user}")
            lab.serving.exposures.flush()
            for user in ("user-5", "user-6"):
                await http.get(f"/v1/users/{user}/recommendations?seen=true&k=4")  # waits
            told: dict[str, Any] = (await http.delete("/v1/users/user-5")).json()
            assert (await http.delete("/v1/users/user-5")).json()["exposures_removed"] == 0
            await http.get("/v1/users/user-5")  # who comes back begins anew
        return told

    told = asyncio.run(ask())
    assert told["exposures_removed"] == 1 + 4
    rows = lab.exposures()
    assert rows["user_id"].sort().to_list() == ["user-5", "user-6"]
    assert rows.filter(pl.col("user_id") == "user-5")["exposed_at"][0] > datetime.fromisoformat(told["erased_at"])
    assert read_shown(lab.workspace.experiments, "second")["user_id"].unique().to_list() == ["user-6"]


def test_a_gateway_of_one_release_for_good_runs_no_experiment(lab: Lab) -> None:
    from services.gateway.serving import Serving

    async def ask() -> None:
        await lab.run(spec(arms=BY_RANKING))
        assigned: list[Any] = []
        serving = Serving(lab.workspace, "release-1", opened=lab.open, assign=assigned.append)
        running = asyncio.create_task(serving.run())
        while not assigned:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.1)
        running.cancel()
        assert assigned == [lab.served.engine]
        assert serving.experiments.told() == []

    asyncio.run(ask())


def test_the_answers_of_users_in_no_experiment_are_those_of_before(lab: Lab) -> None:
    async def ask() -> None:
        await lab.settle()
        paths = [f"/v1/users/{user}{part}" for user in lab.users[:6] for part in USER_ROUTES]
        async with lab.client() as http:
            before = [timeless((await http.get(path)).content) for path in paths]
            [version] = await lab.run(spec(share=1e-9))
            assert set(arms_of(version, lab.users, 1e-9).values()) == {None}
            after = [timeless((await http.get(path)).content) for path in paths]
        strip = re.compile(rb'"computed_at":"[^"]*"|"as_of":"[^"]*"')
        assert [strip.sub(b"", one) for one in after] == [strip.sub(b"", one) for one in before]

    asyncio.run(ask())
