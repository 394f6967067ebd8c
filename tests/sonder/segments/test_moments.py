"""The one pass over many moments against asking `lifecycle_of` moment by moment."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sonder.history.timelines import MICROSECONDS_PER_DAY as DAY
from sonder.segments.lifecycle import STATES, lifecycle_of
from sonder.segments.moments import daily_moments, is_told_by_week, states_at, weekly_moments
from sonder.segments.thresholds import LifecycleThresholds
from tests.tiny_log import random_log, timelines_of

THRESHOLDS = LifecycleThresholds(new_days=3, dormant_days=10, core_active_share=0.4, casual_active_share=0.2)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 60 * 8).map(lambda eighth: eighth / 8), max_size=10), min_size=1, max_size=6),
    st.sets(st.integers(0, 62), min_size=1, max_size=8),
    st.integers(0, DAY - 1),
)
def test_many_moments_at_once_are_the_moments_one_by_one(
    histories: list[list[float]], days: set[int], offset_us: int
) -> None:
    timelines = timelines_of({f"u{n}": [(day, 0, "view") for day in history] for n, history in enumerate(histories)})
    moments = np.array(sorted(days), dtype=np.int64) * DAY + offset_us
    found = states_at(timelines.offsets, timelines.times_us, moments, THRESHOLDS)
    asked = [lifecycle_of(timelines, as_of_us=int(moment), thresholds=THRESHOLDS) for moment in moments]
    assert np.array_equal(found, np.stack(asked, axis=1))


def test_users_looked_at_in_parts_are_the_same_users(monkeypatch: pytest.MonkeyPatch) -> None:
    timelines = timelines_of({"nobody": [], **random_log(2, num_users=40, num_items=2, num_days=60), "last": []})
    moments = weekly_moments(0, 60 * DAY)
    whole = states_at(timelines.offsets, timelines.times_us, moments, THRESHOLDS)
    monkeypatch.setattr("sonder.segments.moments._CELLS", 3 * len(moments))
    assert np.array_equal(states_at(timelines.offsets, timelines.times_us, moments, THRESHOLDS), whole)
    assert len(np.unique(whole)) == len(STATES)


def test_later_events_change_no_earlier_moment() -> None:
    log = random_log(2, num_users=40, num_items=2, num_days=60)
    later = {user: [*events, (61.0, 0, "buy")] for user, events in log.items()}
    found = [
        states_at(timelines.offsets, timelines.times_us, weekly_moments(0, 61 * DAY), THRESHOLDS)
        for timelines in map(timelines_of, (log, later))
    ]
    assert np.array_equal(found[0], found[1])


def test_moments_end_at_the_one_asked_and_begin_within_the_log() -> None:
    assert weekly_moments(0, 15 * DAY).tolist() == [DAY, 8 * DAY, 15 * DAY]
    assert weekly_moments(0, 14 * DAY).tolist() == [7 * DAY, 14 * DAY]
    assert weekly_moments(0, 300 * DAY, most=2).tolist() == [286 * DAY, 293 * DAY, 300 * DAY]
    assert weekly_moments(5 * DAY, 5 * DAY).tolist() == [5 * DAY]
    assert daily_moments(DAY, 3 * DAY + 1).tolist() == [DAY + 1, 2 * DAY + 1, 3 * DAY + 1]
    assert is_told_by_week(0, 180 * DAY)
    assert not is_told_by_week(0, 200 * DAY)


@pytest.mark.parametrize("moments", [[], [2 * DAY, DAY], [DAY, DAY], [0, DAY // 2]])
def test_moments_that_are_not_whole_days_apart_are_refused(moments: list[int]) -> None:
    with pytest.raises(ValueError, match="whole days apart"):
        states_at(np.array([0, 1]), np.array([0]), np.array(moments, dtype=np.int64), THRESHOLDS)
