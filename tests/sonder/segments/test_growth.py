"""The accounts of tiny lives told by hand, their identity for any, and what may not change them."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sonder.history.timelines import MICROSECONDS_PER_DAY as DAY
from sonder.history.timelines import Timelines
from sonder.segments.growth import Tally, accounts, num_active, period_weeks, tally
from sonder.segments.lifecycle import STATES
from sonder.segments.moments import states_at, weekly_moments
from sonder.segments.thresholds import LifecycleThresholds
from tests.tiny_log import Event, random_log, timelines_of

THRESHOLDS = LifecycleThresholds(new_days=7, dormant_days=14, core_active_share=0.4, casual_active_share=0.2)
END = 8 * 7


def counted(timelines: Timelines, end_day: float = END, first_day: float = 0.0) -> tuple[Tally, np.ndarray]:
    moments = weekly_moments(round(first_day * DAY), round(end_day * DAY))
    return tally(states_at(timelines.offsets, timelines.times_us, moments, THRESHOLDS)), moments


def on(*days: float) -> list[Event]:
    return [(day, 0, "view") for day in days]


def test_each_way_through_a_week_has_its_count() -> None:
    users = {
        "joins in the last week": on(50),
        "stays": on(0, 12, 24, 36, 48),
        "comes back in the last week": on(0, 20, 52),
        "turns dormant in the last week": on(30, 36),
        "has long been dormant": on(1),
    }
    found, moments = counted(timelines_of(users))
    last = accounts(found, moments, settled_from_us=14 * DAY)[-1]
    assert (last.new, last.resurrected, last.retained, last.churned) == (1, 1, 1, 1)
    assert (last.active_before, last.active, last.net, last.quick_ratio) == (2, 3, 1, 2.0)
    assert (last.start_us, last.end_us) == (49 * DAY, 56 * DAY)


def test_a_user_who_came_and_went_within_a_month_is_neither_new_nor_churned() -> None:
    found, moments = counted(timelines_of({"once": on(1)}), end_day=28.5)
    month = replace(found, weekly_SS=found.monthly_SS)
    assert month.monthly_SS[0].sum() == 1
    assert month.monthly_SS[0, STATES.index("cold"), STATES.index("dormant")] == 1
    assert moments[0] == 0.5 * DAY


histories = st.lists(
    st.lists(st.integers(0, 4 * 70).map(lambda quarter: quarter / 4), max_size=8), min_size=1, max_size=8
)


@settings(max_examples=150, deadline=None)
@given(histories)
def test_active_users_are_those_before_with_who_came_and_without_who_left(lives: list[list[float]]) -> None:
    found, moments = counted(timelines_of({f"u{n}": on(*days) for n, days in enumerate(lives)}))
    periods = accounts(found, moments, settled_from_us=0)
    assert len(periods) == 7
    for before, period in enumerate(periods):
        assert period.active_before == num_active(found.counts_MS[before])
        assert period.active == num_active(found.counts_MS[before + 1])
        assert period.active == period.active_before + period.new + period.resurrected - period.churned
        assert period.active_before == period.retained + period.churned


def test_a_long_log_is_told_in_periods_of_four_weeks_that_join_up() -> None:
    timelines = timelines_of(random_log(4, num_users=60, num_items=2, num_days=300))
    found, moments = counted(timelines, end_day=300)
    periods = accounts(found, moments, settled_from_us=14 * DAY)
    assert period_weeks(len(moments)) == 4
    assert all(period.end_us - period.start_us == 28 * DAY for period in periods)
    assert all(one.active == two.active_before for one, two in pairwise(periods))
    assert periods[-1].end_us == 300 * DAY
    assert [period.is_settled for period in periods] == [period.start_us >= 14 * DAY for period in periods]


def test_counts_of_disjoint_users_add_up() -> None:
    timelines = timelines_of(random_log(4, num_users=50, num_items=2, num_days=END))
    halves = [timelines.take(np.arange(start, 50, 2)) for start in (0, 1)]
    whole = counted(timelines)[0]
    summed = counted(halves[0])[0] + counted(halves[1])[0] + Tally.empty(8)
    for name in ("counts_MS", "weekly_SS", "monthly_SS"):
        assert np.array_equal(getattr(summed, name), getattr(whole, name))


def test_who_comes_later_is_in_no_number_of_before() -> None:
    log = random_log(4, num_users=50, num_items=2, num_days=END)
    later = {**{user: [*events, (END + 1.0, 0, "buy")] for user, events in log.items()}, "to come": on(END + 2)}
    now, then = counted(timelines_of(log))[0], counted(timelines_of(later))[0]
    assert np.array_equal(now.counts_MS, then.counts_MS)
    assert np.array_equal(now.weekly_SS, then.weekly_SS)
    assert np.array_equal(now.monthly_SS, then.monthly_SS)


@pytest.mark.parametrize("days", [0.5, 6.0])
def test_a_log_of_less_than_a_week_has_a_mix_and_no_growth(days: float) -> None:
    found, moments = counted(timelines_of({"a": on(0)}), end_day=days)
    assert accounts(found, moments, settled_from_us=0) == []
    assert found.counts_MS.sum() == 1
