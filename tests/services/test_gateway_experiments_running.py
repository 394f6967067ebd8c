"""What runs in a gateway is told, ends, and outlives failures: RUNNING, exposures, storage that fails, erasures."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl
import pytest

from services.gateway import exposing
from services.gateway.experimenting import ExperimentEngine
from services.gateway.schemas import AssignmentAnswer, ExperimentsAnswer
from sonder.core.errors import NotFound
from sonder.core.storage import Folder
from sonder.experiments.exposure_files import read_exposures, read_shown
from tests.services.canary_gateway import start as start_canary

if TYPE_CHECKING:
    from conftest import TinyRelease
from tests.services.experiment_gateway import (
    ARMS,
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
