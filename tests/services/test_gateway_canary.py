"""Two releases behind one gateway, over real engines: who reads which, by every route."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pytest

from pipelines.audience import refresh_audiences, save_audience
from sonder.releases.canary import Trial
from tests.services.canary_gateway import ARROW, Gateway, of_three_releases, release_of, start, timeless

if TYPE_CHECKING:
    from conftest import Served, TinyRelease


@pytest.fixture
def gateway(own_served: Served, another_release: Callable[[TinyRelease, str], str]) -> Iterator[Gateway]:
    with of_three_releases(own_served, another_release) as made:
        yield made


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
