"""Thresholds against a plain reading of their definition, and what must not move them."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sonder.core.config import SegmentsConfig
from sonder.history.timelines import MICROSECONDS_PER_DAY as DAY
from sonder.segments.thresholds import LifecycleThresholds, derive_thresholds
from tests.tiny_log import Event, random_log, timelines_of

END = 120
NOTHING_GIVEN = SegmentsConfig()
Users = dict[str, list[Event]]


def derive(users: Users, end: float = END, config: SegmentsConfig = NOTHING_GIVEN) -> LifecycleThresholds:
    return derive_thresholds(timelines_of(users), end_us=round(end * DAY), config=config)


def by_hand(users: Users) -> tuple[int, int, float, float]:
    """The docstring of segments.thresholds, user by user."""
    histories = [sorted(day for day, _, _ in events if day < END) for events in users.values()]
    histories = [days for days in histories if days]
    gaps = [b - a for days in histories for a, b in pairwise(sorted({int(day) for day in days}))]
    first = min((days[0] for days in histories), default=END)
    longest = max(7, int((END - first) / 3))
    dormant = max(7, min(longest, math.ceil(np.quantile(gaps, 0.95)) if gaps else longest))
    new = max(7, min(dormant, math.ceil(np.quantile(gaps, 0.75)) if gaps else 7))
    shares = []
    for days in histories:
        ages = {math.ceil(END - day) - 1 for day in days}  # days back from the end
        active = sum(age < dormant for age in ages)
        if active and max(ages) >= new:
            shares.append(active / dormant)
    core = max(np.quantile(shares, 0.8) if shares else 0, min(3 / dormant, 1))
    casual = max(np.quantile(shares, 0.4) if shares else 0, min(2 / dormant, 1))
    return new, dormant, float(core), float(casual if casual < core else core * 2 / 3)


days = st.lists(st.integers(0, 130 * 4).map(lambda quarter: quarter / 4), max_size=12)


@settings(max_examples=200, deadline=None)
@given(st.lists(days, min_size=1, max_size=8))
def test_thresholds_are_what_their_definition_says(histories: list[list[float]]) -> None:
    users: Users = {f"u{n}": [(day, 0, "view") for day in history] for n, history in enumerate(histories)}
    found = derive(users)
    new, dormant, core, casual = by_hand(users)
    assert (found.new_days, found.dormant_days) == (new, dormant)
    assert (found.core_active_share, found.casual_active_share) == pytest.approx((core, casual))
    assert 0 < found.casual_active_share < found.core_active_share <= 1


def test_the_future_and_the_order_of_users_change_nothing() -> None:
    log = random_log(8, num_users=80, num_items=3, num_days=END)
    found = derive(log)
    later = {user: [*events, (END + 3.0, 0, "buy")] for user, events in log.items()}
    assert derive(later) == found
    assert derive(dict(reversed(log.items()))) == found


def test_events_of_the_same_day_do_not_make_a_rhythm_faster() -> None:
    log = random_log(8, num_users=80, num_items=3, num_days=END)
    doubled = {user: [event for event in events for _ in range(3)] for user, events in log.items()}
    assert derive(doubled) == derive(log)


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ({"dormant_days": 45}, "dormant_days"),
        ({"new_days": 3}, "new_days"),
        ({"core_active_share": 0.9}, "core_active_share"),
    ],
)
def test_what_is_given_is_kept_and_the_rest_follows_from_it(given: dict[str, float], kept: str) -> None:
    found = derive(random_log(8, num_users=80, num_items=3, num_days=END), config=SegmentsConfig.model_validate(given))
    assert getattr(found, kept) == given[kept]
    assert found.new_days <= found.dormant_days
    assert found.casual_active_share < found.core_active_share
