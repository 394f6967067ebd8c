"""Interests some time later: whose have to be found again, and what becomes of the others by time alone.

Shapes: U users, C interests, N events.
Clusters, medoids, names and weights depend on a user's events and on nothing else: weights are measured from the user's
newest event. What moves with `as_of` are the days since the first and the last event, the rate that follows from them,
and the state, whose evidence changes only when an event leaves one of two windows: the recent one of a half-life, and
twice that, past which an interest fades. So the interests of a user of whom nothing is new and of whom no event left a
window can be moved on exactly; the others are found again.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from sonder.history.timelines import MICROSECONDS_PER_DAY, Timelines
from sonder.interests.ward import DAYS_PER_WEEK

_ROUNDING_US = 2  # half-lives are fractions of days: an event that close to an edge counts as one that left


def leave_a_window(timelines: Timelines, *, before_us: int, as_of_us: int, half_life_days: float) -> NDArray[np.bool_]:
    """Users [U] with an event that was within one or two half-lives of `before` and is not any more at `as_of`."""
    left = np.zeros(timelines.num_events, dtype=np.bool_)
    for half_lives in (1, 2):
        width_us = half_lives * half_life_days * MICROSECONDS_PER_DAY
        left |= (timelines.times_us >= before_us - width_us - _ROUNDING_US) & (
            timelines.times_us <= as_of_us - width_us + _ROUNDING_US
        )
    counts = np.concatenate(([0], np.cumsum(left)))
    changed: NDArray[np.bool_] = counts[timelines.offsets[1:]] > counts[timelines.offsets[:-1]]
    return changed


def moved_on(interests: pa.Table, *, as_of_us: int) -> pa.Table:
    """INTEREST_SCHEMA at a later moment, of users for whom no event came and none left a window."""
    columns = {name: interests.column(name) for name in interests.column_names}
    ages = _days_since(interests, "first_at", as_of_us)
    weeks = np.maximum(ages, DAYS_PER_WEEK) / DAYS_PER_WEEK
    columns["age_days"] = pa.array(ages, pa.float32())
    columns["recency_days"] = pa.array(_days_since(interests, "last_at", as_of_us), pa.float32())
    columns["events_per_week"] = pa.array(interests.column("num_events").to_numpy() / weeks, pa.float32())
    return pa.Table.from_arrays(list(columns.values()), schema=interests.schema)


def _days_since(interests: pa.Table, name: str, as_of_us: int) -> NDArray[np.float64]:
    days: NDArray[np.float64] = (as_of_us - interests.column(name).cast(pa.int64()).to_numpy()) / MICROSECONDS_PER_DAY
    return days
