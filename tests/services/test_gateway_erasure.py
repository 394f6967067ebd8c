"""DELETE /v1/users/{id}: gone from store, log and answers, for good, even with a refresh under way."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from services.gateway import erasing
from sonder.profiles.record import iso_time
from sonder.profiles.store import Progress
from sonder.releases.artefacts import Release

if TYPE_CHECKING:
    from conftest import Served


def erase(served: Served, user_id: str) -> dict[str, Any]:
    answer = served.request("DELETE", f"/v1/users/{user_id}")
    assert answer.status_code == 200, answer.text
    told: dict[str, Any] = answer.json()
    return told


def test_an_erased_user_is_unknown_and_the_receipt_says_what_was_removed(own_served: Served) -> None:
    rows = [{"user_id": "user-1", "item_id": "item-1", "action": "buy"}]
    own_served.request("POST", "/v1/events", json={"events": rows})
    own_served.store.put_refreshed([], Progress(1, own_served.release.as_of_us))
    told = erase(own_served, "user-1")
    assert (told["profile_removed"], told["events_removed"], told["refresh_awaited"]) == (True, 1, True)
    answer = own_served.get("/v1/users/user-1")
    assert (answer["cold_reason"], answer["audiences"]) == ("unknown_user", [])
    assert own_served.get("/v1/users/user-1?fresh=true")["cold_reason"] == "unknown_user"
    assert own_served.log.of_user("user-1") == []
    again = erase(own_served, "user-1")
    assert (again["profile_removed"], again["events_removed"]) == (False, 0)


def test_nobody_is_told_of_an_erased_user(own_served: Served) -> None:
    user_ids = own_served.release.user_ids
    similar = own_served.get("/v1/users/user-2/similar?k=3")["similar"]
    erase(own_served, similar[0]["user_id"])
    left = own_served.get("/v1/users/user-2/similar?k=3")["similar"]
    assert [user["user_id"] for user in left] == [user["user_id"] for user in similar[1:]]
    preview = {"rule": "num_events >= 0", "sample": 100}
    told = own_served.request("POST", "/v1/audiences:preview", json=preview).json()
    assert similar[0]["user_id"] not in str(told)
    assert str(user_ids[0]) in str(told) or similar[0]["user_id"] == user_ids[0]


def test_a_refresh_that_was_under_way_does_not_bring_the_user_back(own_served: Served) -> None:
    engine, store, log = own_served.engine, own_served.store, own_served.log
    rows = [{"user_id": "user-1", "item_id": "item-1", "action": "buy"}]
    own_served.request("POST", "/v1/events", json={"events": rows})
    kept = store.get("user-1")
    assert kept is not None

    async def late_write() -> None:
        await asyncio.sleep(0.1)  # the erasure has deleted the record by now
        store.put_refreshed([("user-1", kept)], Progress(log.last(), own_served.release.as_of_us))

    async def both() -> None:
        await asyncio.gather(engine.erase("user-1"), late_write())

    asyncio.run(both())
    assert store.get("user-1") is None


def test_a_refresh_that_never_comes_is_told(own_served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(erasing, "REFRESH_WAIT_S", 0.05)
    rows = [{"user_id": "user-2", "item_id": "item-1", "action": "buy"}]
    own_served.request("POST", "/v1/events", json={"events": rows})
    assert erase(own_served, "user-1")["refresh_awaited"] is False


def test_a_store_that_is_loaded_again_does_not_have_the_user(own_served: Served) -> None:
    erase(own_served, "user-1")
    opened = Release.open(own_served.release.workspace, own_served.release.release)
    target = opened.workspace.store / opened.id
    target.rename(target.with_name("as-it-was"))
    with opened.open_store() as again:
        assert again.get("user-1") is None
        assert again.get("user-2") is not None


def test_what_an_erased_user_does_later_is_a_new_beginning(own_served: Served) -> None:
    erase(own_served, "user-1")
    later = iso_time(own_served.release.as_of_us + 1)
    rows = [{"user_id": "user-1", "item_id": "item-1", "action": "buy", "timestamp": later}]
    own_served.request("POST", "/v1/events", json={"events": rows})
    assert own_served.get("/v1/users/user-1?fresh=true")["num_events"] == 1
