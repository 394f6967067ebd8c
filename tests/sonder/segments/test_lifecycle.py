"""Lifecycle states at the edges of their definitions, since when they hold, and where the thresholds come from."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from sonder.core.config import SegmentsConfig
from sonder.history.timelines import MICROSECONDS_PER_DAY as DAY
from sonder.segments.lifecycle import STATES, lifecycle_of, lifecycle_table, transitions
from sonder.segments.thresholds import LifecycleThresholds, derive_thresholds
from tests.tiny_log import Event, random_log, timelines_of

THRESHOLDS = LifecycleThresholds(new_days=7, dormant_days=30, core_active_share=0.2, casual_active_share=0.1)
AS_OF = 100


def on(*days: float) -> list[Event]:
    return [(day, 0, "view") for day in days]


def states_of(users: dict[str, list[Event]], as_of_us: int = AS_OF * DAY) -> dict[str, str]:
    found = lifecycle_of(timelines_of(users), as_of_us=as_of_us, thresholds=THRESHOLDS)
    return {user: STATES[state] for user, state in zip(users, found, strict=True)}


def test_each_state_has_its_user() -> None:
    assert states_of(
        {
            "cold": [],
            "tomorrow": on(100, 101),
            "new": on(94, 95, 96, 97, 98, 99),
            "core": on(10, 80, 82, 84, 86, 88, 90),
            "casual": on(10, 50, 80, 84, 88),
            "marginal": on(50, 75),
            "dormant": on(10, 20, 60),
            "resurrected": on(10, 20, 95),
        }
    ) == {
        "cold": "cold",
        "tomorrow": "cold",
        "new": "new",
        "core": "core",
        "casual": "casual",
        "marginal": "marginal",
        "dormant": "dormant",
        "resurrected": "resurrected",
    }


def test_thresholds_are_exact_to_the_microsecond() -> None:
    step = 1 / DAY
    assert states_of(
        {
            "just dormant": on(50, 70),
            "not dormant": on(50, 70 + step),
            "just not new": on(93),
            "still new": on(93 + step),
            "gap of 30 days": on(10, 65, 95),
            "gap of almost 30 days": on(10, 35, 65 + step, 95),
        }
    ) == {
        "just dormant": "dormant",
        "not dormant": "marginal",
        "just not new": "marginal",
        "still new": "new",
        "gap of 30 days": "resurrected",
        "gap of almost 30 days": "marginal",
    }


def test_several_events_of_a_day_are_one_active_day() -> None:
    busy = [90 + step / 100 for step in range(40)]
    assert states_of({"busy": on(60, 72, *busy)}) == {"busy": "marginal"}
    assert states_of({"busy": on(60, 72, 90, 91, 92)}) == {"busy": "casual"}


def test_neighbours_in_the_table_do_not_lend_each_other_days_or_gaps() -> None:
    alone = {"a": on(1, 99.5), "b": on(99.5), "c": on(60, 95)}
    for user, events in alone.items():
        assert states_of(alone)[user] == states_of({user: events})[user]


def test_since_is_when_the_state_began() -> None:
    users = {
        "new": on(95),
        "dormant": on(10, 60),
        "resurrected": on(10, 95.25),
        "casual": on(10, 50, 74.5, 79.5, 89.5, 90.5),
        "cold": [],
    }
    table = lifecycle_table(timelines_of(users), as_of_us=AS_OF * DAY, thresholds=THRESHOLDS)
    micros = table["since"].cast(pa.int64()).to_pylist()
    since = {u: None if t is None else t / DAY for u, t in zip(table["user_id"].to_pylist(), micros, strict=True)}
    assert since == {"new": 95.0, "dormant": 90.0, "resurrected": 95.25, "casual": 90.0, "cold": None}
    assert table["days_since_last"].to_pylist() == [5.0, 40.0, 4.75, 9.5, None]


def test_since_agrees_with_asking_every_day() -> None:
    timelines = timelines_of(random_log(3, num_users=60, num_items=3, num_days=100))
    table = lifecycle_table(timelines, as_of_us=AS_OF * DAY, thresholds=THRESHOLDS)
    states = np.array([STATES.index(state) for state in table["lifecycle"].to_pylist()])
    since = table["since"].cast(pa.int64()).to_numpy()
    settled = np.isin(states, [STATES.index(name) for name in ("core", "casual", "marginal")])
    assert settled.sum() > 10
    asked = {day: lifecycle_of(timelines, as_of_us=day * DAY, thresholds=THRESHOLDS) for day in range(AS_OF + 1)}
    for row in np.flatnonzero(settled):
        day = AS_OF
        while asked[day - 1][row] == states[row]:
            day -= 1
        assert since[row] == day * DAY


def test_transitions_count_every_user_once() -> None:
    timelines = timelines_of(random_log(4, num_users=80, num_items=3, num_days=100))
    before, after = (lifecycle_of(timelines, as_of_us=day * DAY, thresholds=THRESHOLDS) for day in (60, 100))
    moved = transitions(before, after)
    assert moved.sum() == 80
    assert moved[STATES.index("cold"), STATES.index("new")] == ((before == 0) & (after == 1)).sum()
    assert moved[:, STATES.index("cold")].sum() == moved[0, 0]  # nobody becomes cold again


def test_thresholds_follow_the_rhythm_of_the_log() -> None:
    daily = {f"d{user}": on(*range(user % 7, 120)) for user in range(30)}
    monthly = {f"m{user}": on(*range(user % 30, 360, 30)) for user in range(30)}
    fast = derive_thresholds(timelines_of(daily), end_us=120 * DAY, config=SegmentsConfig())
    slow = derive_thresholds(timelines_of(monthly), end_us=360 * DAY, config=SegmentsConfig())
    assert (fast.new_days, fast.dormant_days) == (7, 7)
    assert (slow.new_days, slow.dormant_days) == (30, 30)
    assert fast.core_active_share > slow.core_active_share


@pytest.mark.parametrize("users", [{"a": on(1), "b": on(50)}, {"a": []}], ids=["nobody returns", "no events"])
def test_a_log_without_rhythm_still_has_ordered_thresholds(users: dict[str, list[Event]]) -> None:
    found = derive_thresholds(timelines_of(users), end_us=90 * DAY, config=SegmentsConfig())
    assert 0 < found.new_days <= found.dormant_days
    assert 0 < found.casual_active_share < found.core_active_share <= 1


def test_configured_thresholds_win_and_survive_json() -> None:
    config = SegmentsConfig(new_days=3, dormant_days=40, core_active_share=0.9, casual_active_share=0.5)
    found = derive_thresholds(timelines_of({"a": on(1, 2, 3)}), end_us=90 * DAY, config=config)
    assert found == LifecycleThresholds(3, 40, 0.9, 0.5)
    assert LifecycleThresholds.from_dict(found.to_dict()) == found
