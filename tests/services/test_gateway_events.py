"""Events over HTTP, and what they change: at once where it is computed, a moment later where it is stored."""

from __future__ import annotations

import asyncio
from datetime import datetime
from typing import TYPE_CHECKING, Any

import pytest

from services.gateway.refresh import MAX_TRIES
from sonder.history.timelines import MICROSECONDS_PER_DAY
from sonder.profiles.record import iso_time

if TYPE_CHECKING:
    from conftest import Served

VOLATILE = {"age_ms", "computed_at"}


def row(served: Served, user_id: str, item_id: str, *, days: float = 0.5, **more: Any) -> dict[str, Any]:
    at = iso_time(served.release.as_of_us + int(days * MICROSECONDS_PER_DAY))
    return {"user_id": user_id, "item_id": item_id, "action": "buy", "timestamp": at, "surface": "web", **more}


def send(served: Served, *rows: Any) -> dict[str, Any]:
    answer = served.request("POST", "/v1/events", json={"events": list(rows)})
    assert answer.status_code == 202, answer.text
    parsed: dict[str, Any] = answer.json()
    return parsed


def refresh(served: Served) -> int:
    return asyncio.run(served.refresher().step())


def settled(answer: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in answer.items() if name not in VOLATILE}


def test_a_batch_is_accepted_once_and_told_row_by_row(own_served: Served) -> None:
    rows = [row(own_served, "user-1", "item-3", event_id="e-1"), {"item_id": "item-3", "action": "buy"}, 7]
    told = [
        {"row": 1, "reason": "anonymous", "detail": "no user_id"},
        {"row": 2, "reason": "unparsable", "detail": "not an object"},
    ]
    assert send(own_served, *rows) == {"accepted": 1, "duplicates": 0, "rejected": told}
    assert send(own_served, *rows) == {"accepted": 0, "duplicates": 1, "rejected": told}


def test_a_request_without_any_event_is_refused_and_changes_nothing(own_served: Served) -> None:
    answer = own_served.request("POST", "/v1/events", json={"events": [{}]})
    assert answer.status_code == 422
    assert "row 0: no user_id" in answer.json()["detail"]
    assert own_served.log.last() == 0


def test_a_fresh_profile_holds_what_was_accepted_and_the_stored_one_says_its_age(own_served: Served) -> None:
    before = own_served.get("/v1/users/user-1")
    send(own_served, row(own_served, "user-1", "item-3"), row(own_served, "user-1", "item-4"))
    fresh = own_served.get("/v1/users/user-1?fresh=true")
    assert fresh["num_events"] == before["num_events"] + 2
    assert fresh["as_of"] > before["as_of"]
    assert settled(own_served.get("/v1/users/user-1")) == settled(before)


def test_the_refresh_stores_what_a_fresh_read_computes(own_served: Served) -> None:
    send(own_served, row(own_served, "user-1", "item-3"), row(own_served, "user-2", "item-4"))
    fresh = [settled(own_served.get(f"/v1/users/user-{user}?fresh=true")) for user in (1, 2)]
    assert refresh(own_served) == 2
    stored = [own_served.get(f"/v1/users/user-{user}") for user in (1, 2)]
    assert [settled(answer) for answer in stored] == fresh
    assert stored[0]["computed_at"].startswith("2027-01-15T08:00:00")
    assert refresh(own_served) == 0
    assert settled(own_served.get("/v1/users/user-1?fresh=true")) == fresh[0]


def test_the_drivers_of_a_refreshed_profile_are_computed_when_asked_for(own_served: Served) -> None:
    send(own_served, row(own_served, "user-1", "item-3"))
    refresh(own_served)
    assert own_served.get("/v1/users/user-1")["scores"][0]["drivers"] is None
    assert own_served.get("/v1/users/user-1/explanation")["scores"][0]["drivers"]


def test_a_user_who_was_unknown_is_known_from_the_first_event_on(own_served: Served) -> None:
    assert own_served.get("/v1/users/newcomer")["cold_reason"] == "unknown_user"
    send(own_served, row(own_served, "newcomer", "item-3"))
    assert own_served.get("/v1/users/newcomer?fresh=true")["num_events"] == 1
    refresh(own_served)
    stored = own_served.get("/v1/users/newcomer")
    assert (stored["is_cold"], stored["num_events"], stored["segments"]["lifecycle"]) == (False, 1, "new")


def test_an_item_just_acted_on_is_not_recommended_next(own_served: Served) -> None:
    def first() -> str:
        found = own_served.get("/v1/users/user-1/recommendations?k=1")["recommendations"]
        return str(found[0]["item_id"])

    item_id = first()
    send(own_served, row(own_served, "user-1", item_id))
    assert first() != item_id
    refresh(own_served)
    assert first() != item_id


def test_unknown_items_and_actions_are_kept_for_the_next_build_and_break_nothing(own_served: Served) -> None:
    send(own_served, row(own_served, "user-1", "item of tomorrow"), row(own_served, "user-1", "item-1", action="wink"))
    assert refresh(own_served) == 2
    assert own_served.get("/v1/users/user-1")["is_cold"] is False
    assert [event.item_id for event in own_served.log.of_user("user-1")] == ["item of tomorrow", "item-1"]


def test_an_event_before_the_release_waits_for_the_next_build(own_served: Served) -> None:
    before = own_served.get("/v1/users/user-1")
    send(own_served, row(own_served, "user-1", "item-3", days=-1))
    assert refresh(own_served) == 1
    assert own_served.get("/v1/users/user-1")["num_events"] == before["num_events"]
    assert own_served.get("/v1/users/user-1?fresh=true")["num_events"] == before["num_events"]
    assert len(own_served.log.of_user("user-1")) == 1


@pytest.mark.parametrize("order", [(0.2, 0.4), (0.4, 0.2)])
def test_events_out_of_order_give_the_same_profile(own_served: Served, order: tuple[float, float]) -> None:
    for days in order:
        send(own_served, row(own_served, "user-1", f"item-{int(days * 10)}", days=days))
        refresh(own_served)
    send(own_served, row(own_served, "user-2", "item-1", days=1))  # both orders end at one watermark
    refresh(own_served)
    fresh, stored = own_served.get("/v1/users/user-1?fresh=true"), own_served.get("/v1/users/user-1")
    newest = own_served.release.as_of_us + int(0.4 * MICROSECONDS_PER_DAY)
    assert datetime.fromisoformat(fresh["last_seen"]) == datetime.fromisoformat(iso_time(newest))
    assert (stored["last_seen"], stored["num_events"]) == (fresh["last_seen"], fresh["num_events"])


def test_a_stage_that_fails_is_waited_for_and_nothing_is_lost(own_served: Served) -> None:
    send(own_served, row(own_served, "user-1", "item-3"))
    own_served.handles["scoring"].fails["score"] = RuntimeError("down")
    following, before = own_served.refresher(), own_served.get("/v1/users/user-1")
    with pytest.raises(Exception, match="scoring failed, try 1"):
        asyncio.run(following.step())
    assert own_served.get("/v1/users/user-1")["num_events"] == before["num_events"]
    del own_served.handles["scoring"].fails["score"]
    assert asyncio.run(following.step()) == 1
    assert own_served.get("/v1/users/user-1")["num_events"] == before["num_events"] + 1


def test_a_stage_that_never_answers_does_not_stop_the_others(own_served: Served) -> None:
    send(own_served, row(own_served, "user-1", "item-3"))
    own_served.handles["scoring"].fails["score"] = RuntimeError("down")
    following, before = own_served.refresher(), own_served.get("/v1/users/user-1")
    for _ in range(MAX_TRIES - 1):
        with pytest.raises(Exception, match="scoring failed"):
            asyncio.run(following.step())
    assert asyncio.run(following.step()) == 1
    after = own_served.get("/v1/users/user-1")
    assert after["num_events"] == before["num_events"] + 1
    assert after["scores"] == before["scores"]
