"""Simulated users at a real gateway: they come, ask for recommendations, and what they do is posted as events.

A day of the world takes `day_s` seconds of the wall clock. Every visit asks `GET /v1/users/{id}/recommendations`,
reacts by its true chances to the list that it got, and posts the reactions, which carry no time and so happened when
they arrived. Where the arms' releases are told, the other arm's list is also asked for, by the name of its release,
right afterwards: whoever names a release is in no experiment, so this exposes nobody, and it tells what would have been
shown.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections import Counter
from dataclasses import dataclass, field

import httpx
import numpy as np
from numpy.typing import NDArray

from sonder.events.synthetic.choices import REACTIONS, SURFACE, choice_chances, draw_choices
from sonder.events.synthetic.config import DAY_MS
from sonder.events.synthetic.visits import CHOICES_STREAM, Visits, World

PLACES = 10
AT_ONCE = 12  # requests on their way; a visit beyond that waits, and is counted as late


@dataclass
class Told:
    """What the users' side knows of a phase."""

    user: list[int] = field(default_factory=list)  # of each visit that was answered
    at_s: list[float] = field(default_factory=list)  # of the wall clock
    arm: list[str | None] = field(default_factory=list)  # as the answer's header says
    expected: list[tuple[float, float]] = field(default_factory=list)  # clicks on the list, and on the other arm's
    latencies_s: list[float] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)
    other_statuses: Counter[int] = field(default_factory=Counter)
    events: int = 0
    fallbacks: int = 0  # answers that were not personal
    late_s: float = 0.0  # the worst


async def pass_days(
    url: str,
    world: World,
    visits: Visits,
    *,
    day_s: float,
    seed: int,
    experiment: str,
    releases: dict[str, str] | None = None,
    transport: httpx.AsyncBaseTransport | None = None,
) -> Told:
    """Let the visits happen on their schedule, or as fast as they are answered where that is later; returns when the
    last reaction is accepted.

    `releases`: of the two arms, to ask for what the other one would have shown; expected clicks are NaN without.
    `transport`: instead of the network, for tests.
    """
    told, rng = Told(), world.config.generator(CHOICES_STREAM, seed)
    first_ms = visits.day[0] * DAY_MS
    limits = httpx.Limits(max_connections=AT_ONCE, max_keepalive_connections=AT_ONCE)
    async with httpx.AsyncClient(base_url=url, trust_env=False, limits=limits, timeout=60, transport=transport) as http:
        gate, began, waiting = asyncio.Semaphore(AT_ONCE), time.monotonic(), set()
        for user, time_ms in zip(visits.user.tolist(), visits.time_ms.tolist(), strict=True):
            due = began + (time_ms - first_ms) / DAY_MS * day_s
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            await gate.acquire()
            told.late_s = max(told.late_s, time.monotonic() - due)
            task = asyncio.create_task(_visit(http, world, rng, user, told, experiment, releases or {}))
            waiting.add(task)
            task.add_done_callback(lambda done: (waiting.discard(done), gate.release()))
        await asyncio.gather(*waiting)
    return told


async def _visit(
    http: httpx.AsyncClient,
    world: World,
    rng: np.random.Generator,
    user: int,
    told: Told,
    experiment: str,
    releases: dict[str, str],
) -> None:
    path = f"/v1/users/{world.user_ids[user].as_py()}/recommendations?k={PLACES}"
    asked = time.perf_counter()
    answer = await http.get(path)
    told.latencies_s.append(time.perf_counter() - asked)
    told.statuses[answer.status_code] += 1
    if answer.status_code != 200:
        return
    content = answer.json()
    at_s = time.time()
    told.fallbacks += content["fallback"] is not None
    arm = _arm(answer.headers.get("x-sonder-experiment", ""), experiment)
    rows = [_rows(world, content)]
    others = [release for name, release in releases.items() if arm is not None and name != arm]
    if others:
        other = await http.get(f"{path}&release={others[0]}")
        told.other_statuses[other.status_code] += 1
        rows += [_rows(world, other.json())] if other.status_code == 200 else []
    chances = choice_chances(world, np.full(len(rows), user), np.full(len(rows), world.config.num_days), np.stack(rows))
    clicks = [*chances.click.sum(axis=1).tolist(), float("nan")]
    told.user.append(user)  # all of a visit at once: others are on their way
    told.at_s.append(at_s)
    told.arm.append(arm)
    told.expected.append((clicks[0], clicks[1]))
    choices = draw_choices(rng, chances)
    items, request_id = content["recommendations"], uuid.uuid4().hex
    events = [
        {
            "event_id": f"{request_id}-{place}-{action}",
            "user_id": content["user_id"],
            "item_id": items[place]["item_id"],
            "action": action,
            "surface": SURFACE,
            "request_id": request_id,
        }
        for action in REACTIONS
        for place in np.flatnonzero(getattr(choices, action)[0]).tolist()
    ]
    if events:
        (await http.post("/v1/events", json={"events": events})).raise_for_status()
        told.events += len(events)


def _rows(world: World, content: dict[str, list[dict[str, str]]]) -> NDArray[np.int32]:
    """The list of an answer as rows of the catalogue [K]."""
    return world.item_rows([[item["item_id"] for item in content["recommendations"]]], PLACES)[0]


def _arm(header: str, experiment: str) -> str | None:
    """Of `name=arm, name=arm`."""
    arms = dict(part.split("=", 1) for part in header.split(", ") if "=" in part)
    return arms.get(experiment)
