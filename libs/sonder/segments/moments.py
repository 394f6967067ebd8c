"""The lifecycle of every user at many moments in one pass: what growth, cohorts and forecasts are counted from.

`lifecycle.lifecycle_of` reads the events once per moment; here they are read once. The moments lie whole days apart, so
the days of any of them are the days of all, and a history shrinks to its active days. How many of those lie before
each moment, and how many before its window, are two counts; every other fact of a state is looked up by them.
Shapes: U users, N events, M moments (ascending), R active days of all users.
Limits: moments whole days apart; the answer for a moment is that of `lifecycle_of`, to the microsecond.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sonder.history.timelines import MICROSECONDS_PER_DAY
from sonder.segments.lifecycle import COLD, Rhythm, states_of
from sonder.segments.thresholds import LifecycleThresholds

DAYS_PER_WEEK = 7
MOST_WEEKS = 104
HALF_YEAR_WEEKS = 26
_CELLS = 1 << 18  # users times moments looked at together: bounds the memory


def weekly_moments(first_us: int, as_of_us: int, *, most: int = MOST_WEEKS) -> NDArray[np.int64]:
    """`as_of` and the moments whole weeks before it that the log reaches back to, ascending: one at least."""
    week_us = DAYS_PER_WEEK * MICROSECONDS_PER_DAY
    num_weeks = max(0, min(most, (as_of_us - 1 - first_us) // week_us))
    return as_of_us - week_us * np.arange(num_weeks, -1, -1, dtype=np.int64)


def is_told_by_week(first_us: int, as_of_us: int) -> bool:
    """Whether a log is told in weeks; one of more than half a year is told in months."""
    return (as_of_us - 1 - first_us) // (DAYS_PER_WEEK * MICROSECONDS_PER_DAY) <= HALF_YEAR_WEEKS


def daily_moments(first_us: int, as_of_us: int) -> NDArray[np.int64]:
    """`as_of` and the moments whole days before it that lie after `first_us`, ascending: one at least."""
    num_days = max(0, (as_of_us - 1 - first_us) // MICROSECONDS_PER_DAY)
    return as_of_us - MICROSECONDS_PER_DAY * np.arange(num_days, -1, -1, dtype=np.int64)


def states_at(
    offsets: NDArray[np.int64],
    times_us: NDArray[np.int64],
    moments_us: NDArray[np.int64],
    thresholds: LifecycleThresholds,
) -> NDArray[np.int8]:
    """State of each user at each moment [U, M], an index into STATES.

    `offsets` [U + 1] and `times_us` [N] are those of history.timelines; ValueError unless the moments ascend by whole
    days.
    """
    if len(moments_us) == 0 or np.any(np.diff(moments_us) <= 0) or np.any(np.diff(moments_us) % MICROSECONDS_PER_DAY):
        raise ValueError("moments have to ascend, whole days apart")
    num_users = len(offsets) - 1
    states_UM = np.full((num_users, len(moments_us)), COLD, dtype=np.int8)
    step = max(1, _CELLS // len(moments_us))
    for start in range(0, num_users, step):
        stop = min(start + step, num_users)
        first, last = offsets[start], offsets[stop]
        if last > first:
            part = _rhythms(offsets[start : stop + 1] - first, times_us[first:last], moments_us, thresholds)
            states_UM[start:stop] = states_of(part, moments_us, thresholds)
    return states_UM


def _rhythms(
    offsets: NDArray[np.int64],
    times_us: NDArray[np.int64],
    moments_us: NDArray[np.int64],
    thresholds: LifecycleThresholds,
) -> Rhythm:
    """What the states are decided from, arrays of [U, M]; at least one event."""
    users = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    days = (times_us - moments_us[-1]) // MICROSECONDS_PER_DAY
    is_first_of_day = np.ones(len(times_us), dtype=np.bool_)
    is_first_of_day[1:] = (np.diff(days) != 0) | (np.diff(users) != 0)
    firsts = np.flatnonzero(is_first_of_day)
    user_R, day_R, first_R = users[firsts], days[firsts], times_us[firsts]
    last_R = times_us[np.append(firsts[1:], len(times_us)) - 1]

    # Within a day no gap is long: the events between which one lies are the last and the first of two active days.
    starts_stay = np.ones(len(firsts), dtype=np.bool_)
    starts_stay[1:] = (np.diff(user_R) != 0) | (
        first_R[1:] - last_R[:-1] >= thresholds.dormant_days * MICROSECONDS_PER_DAY
    )
    returned_R = first_R[np.maximum.accumulate(np.where(starts_stay, np.arange(len(firsts)), 0))]

    moment_days = (moments_us - moments_us[-1]) // MICROSECONDS_PER_DAY
    num_users = len(offsets) - 1
    seen_UM = _days_before(user_R, day_R, moment_days, num_users)
    left_UM = _days_before(user_R, day_R, moment_days - thresholds.dormant_days, num_users)
    row_U = np.searchsorted(user_R, np.arange(num_users))
    newest_UM = np.clip(row_U[:, None] + seen_UM - 1, 0, None)
    first_UM = np.broadcast_to(first_R[np.minimum(row_U, len(firsts) - 1)][:, None], seen_UM.shape)
    return Rhythm(seen_UM, first_UM, last_R[newest_UM], returned_R[newest_UM], seen_UM - left_UM)


def _days_before(
    user_R: NDArray[np.int64], day_R: NDArray[np.int64], limits_M: NDArray[np.int64], num_users: int
) -> NDArray[np.int64]:
    """Active days of each user before each of the ascending limits [U, M]."""
    num = len(limits_M) + 1  # the last column: before none of them
    column_R = np.searchsorted(limits_M, day_R, side="right")
    counts = np.bincount(user_R * num + column_R, minlength=num_users * num).reshape(num_users, num)
    before: NDArray[np.int64] = np.cumsum(counts[:, :-1], axis=1)
    return before
