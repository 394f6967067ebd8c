"""Who takes part in an experiment, and lists of both arms: ramps, rules, the same arm everywhere, interleaving."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl
import pytest

from sonder.core.errors import InvalidRequest
from sonder.experiments.assignment import assign_users
from sonder.experiments.exposure_files import read_shown
from sonder.experiments.versions import Version

if TYPE_CHECKING:
    from conftest import TinyRelease
from tests.services.experiment_gateway import (
    ARMS,
    BY_RANKING,
    BY_RELEASE,
    SAID,
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
