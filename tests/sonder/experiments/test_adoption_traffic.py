"""The users of the adoption story: what they ask of a gateway, and what they post about what they got."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from typing import Any

import httpx
import numpy as np

from benchmarks.adoption_traffic import PLACES, Told, pass_days
from sonder.events.synthetic import WorldConfig
from sonder.events.synthetic.choices import SURFACE, choice_chances
from sonder.events.synthetic.visits import World, draw_visits

NAME = "a-or-b"
WORLD = World.of(WorldConfig(num_users=300, num_days=14, seed=5))


class Gateway:
    """Answers half of the users by release A, the others by B; B's lists are the next items."""

    def __init__(self) -> None:
        self.items = WORLD.catalogue.item_ids.to_pylist()
        self.asked: Counter[str | None] = Counter()
        self.events: list[dict[str, Any]] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        if request.method == "POST":
            self.events += json.loads(request.content)["events"]
            return httpx.Response(202)
        user_id, named = request.url.path.split("/")[3], request.url.params.get("release")
        self.asked[named] += 1
        arm = "b" if int(user_id[1:]) % 2 else "a"
        start = PLACES if (named or f"release-{arm}") == "release-b" else 0
        ranked = [{"rank": place + 1, "item_id": self.items[start + place]} for place in range(PLACES)]
        headers = {} if named else {"x-sonder-experiment": f"other=x, {NAME}={arm}"}
        answer = {"user_id": user_id, "fallback": None, "recommendations": ranked}
        return httpx.Response(200, json=answer, headers=headers)


def live_two_days() -> tuple[Gateway, Told, int]:
    gateway, visits = Gateway(), draw_visits(WORLD, 2, seed=1)
    told = asyncio.run(
        pass_days(
            "http://gateway",
            WORLD,
            visits,
            day_s=0.05,
            seed=1,
            experiment=NAME,
            releases={"a": "release-a", "b": "release-b"},
            transport=httpx.MockTransport(gateway),
        )
    )
    return gateway, told, len(visits)


def test_every_visit_asks_for_its_own_list_and_for_that_of_the_other_arm() -> None:
    gateway, told, num_visits = live_two_days()
    odd = sum((user + 1) % 2 for user in told.user)  # ids count from 1, rows from 0
    assert gateway.asked == {None: num_visits, "release-a": odd, "release-b": num_visits - odd}
    assert len(told.user) == len(told.arm) == len(told.expected) == told.statuses[200] == num_visits
    assert told.arm == ["b" if (user + 1) % 2 else "a" for user in told.user]


def test_expected_clicks_are_those_of_the_choice_model_on_both_lists() -> None:
    _, told, num_visits = live_two_days()
    user, day = np.asarray(told.user), np.full(num_visits, WORLD.config.num_days)
    lists = [np.tile(np.arange(start, start + PLACES, dtype=np.int32), (num_visits, 1)) for start in (0, PLACES)]
    a, b = (choice_chances(WORLD, user, day, one).click.sum(axis=1) for one in lists)
    is_b = np.asarray(told.arm) == "b"
    assert np.allclose(np.asarray(told.expected), np.stack([np.where(is_b, b, a), np.where(is_b, a, b)], axis=1))


def test_reactions_are_posted_for_items_of_the_list_that_was_shown() -> None:
    gateway, told, _ = live_two_days()
    assert told.events == len(gateway.events) > 0
    shown = {"a": set(gateway.items[:PLACES]), "b": set(gateway.items[PLACES : 2 * PLACES])}
    for event in gateway.events:
        assert event["item_id"] in shown["b" if int(event["user_id"][1:]) % 2 else "a"]
        assert event["surface"] == SURFACE
    clicked = {(event["request_id"], event["item_id"]) for event in gateway.events if event["action"] == "click"}
    for event in gateway.events:
        if event["action"] in ("save", "buy"):
            assert (event["request_id"], event["item_id"]) in clicked
    assert len({event["event_id"] for event in gateway.events}) == len(gateway.events)
