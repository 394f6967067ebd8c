"""Lifecycle: where each user stands with the product at a point in time, from nothing but the times of its events.

With `as_of` the point in time, a day 24 hours back from it, and the thresholds of segments.thresholds; the first that
holds:
cold         no event before `as_of`
dormant      the last event is at least dormant_days old
new          the first event is less than new_days old
resurrected  a gap of at least dormant_days ended with an event less than new_days old
core         share of the last dormant_days days with an event >= core_active_share
casual       the same share >= casual_active_share
marginal     anything else
Any event counts, whatever its action: a product that logs what it sends to absent users should leave that out.
Events at `as_of` or later do not exist here, so the state on any past day can be asked.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from sonder.events.contract import TIMESTAMP_TYPE
from sonder.history.timelines import MICROSECONDS_PER_DAY, Timelines
from sonder.segments.thresholds import LifecycleThresholds, derive_thresholds

__all__ = [
    "LIFECYCLE_SCHEMA",
    "STATES",
    "LifecycleThresholds",
    "derive_thresholds",
    "lifecycle_of",
    "lifecycle_table",
    "transitions",
]

STATES = ("cold", "new", "core", "casual", "marginal", "dormant", "resurrected")
COLD, NEW, CORE, CASUAL, MARGINAL, DORMANT, RESURRECTED = range(7)
_CHUNK = 4096  # users whose past days are looked at together

LIFECYCLE_SCHEMA = pa.schema(
    [
        pa.field("user_id", pa.string(), nullable=False),
        pa.field("lifecycle", pa.string(), nullable=False),
        pa.field("since", TIMESTAMP_TYPE),  # entered the state; null for cold users
        pa.field("first_at", TIMESTAMP_TYPE),
        pa.field("last_at", TIMESTAMP_TYPE),
        pa.field("days_since_last", pa.float32()),
        pa.field("active_days", pa.int32(), nullable=False),  # of the last dormant_days
        pa.field("num_events", pa.int32(), nullable=False),
    ]
)


@dataclass(frozen=True)
class Rhythm:
    """What the states are decided from; arrays of one shape, [U] or more, meaningless where `num_events` is 0."""

    num_events: NDArray[np.int64]  # only asked whether it is 0
    first_us: NDArray[np.int64]
    last_us: NDArray[np.int64]
    returned_us: NDArray[np.int64]  # the event that ended the newest long gap; `first_us` without one
    active_days: NDArray[np.int64]  # of the window


def lifecycle_of(timelines: Timelines, *, as_of_us: int, thresholds: LifecycleThresholds) -> NDArray[np.int8]:
    """State of each user [U], an index into STATES."""
    return states_of(_rhythm(timelines, as_of_us, thresholds), as_of_us, thresholds)


def lifecycle_table(timelines: Timelines, *, as_of_us: int, thresholds: LifecycleThresholds) -> pa.Table:
    """State of each user with its evidence -> LIFECYCLE_SCHEMA, users in their order."""
    rhythm = _rhythm(timelines, as_of_us, thresholds)
    states = states_of(rhythm, as_of_us, thresholds)
    is_cold = states == COLD
    since = _since(timelines, rhythm, states, as_of_us, thresholds)
    return pa.Table.from_arrays(
        [
            timelines.user_ids,
            pa.array(np.array(STATES, dtype=object)[states], pa.string()),
            pa.array(since, mask=is_cold).cast(TIMESTAMP_TYPE),
            pa.array(rhythm.first_us, mask=is_cold).cast(TIMESTAMP_TYPE),
            pa.array(rhythm.last_us, mask=is_cold).cast(TIMESTAMP_TYPE),
            pa.array(((as_of_us - rhythm.last_us) / MICROSECONDS_PER_DAY).astype(np.float32), mask=is_cold),
            pa.array(rhythm.active_days, pa.int32()),
            pa.array(rhythm.num_events, pa.int32()),
        ],
        schema=LIFECYCLE_SCHEMA,
    )


def transitions(before_U: NDArray[np.int8], after_U: NDArray[np.int8]) -> NDArray[np.int64]:
    """Users that went from state (row) to state (column) between two points in time -> [7, 7]."""
    pairs = before_U.astype(np.int64) * len(STATES) + after_U
    return np.bincount(pairs, minlength=len(STATES) ** 2).reshape(len(STATES), len(STATES))


def _rhythm(timelines: Timelines, as_of_us: int, thresholds: LifecycleThresholds) -> Rhythm:
    history = timelines.before(as_of_us)
    has_events = history.lengths > 0
    first_us = np.zeros(history.num_users, dtype=np.int64)
    last_us = np.zeros(history.num_users, dtype=np.int64)
    first_us[has_events] = history.times_us[history.offsets[:-1][has_events]]
    last_us[has_events] = history.times_us[history.offsets[1:][has_events] - 1]

    users, times_us = history.user_rows, history.times_us
    ends_long_gap = np.zeros(history.num_events, dtype=np.bool_)
    ends_long_gap[1:] = np.diff(times_us) >= thresholds.dormant_days * MICROSECONDS_PER_DAY
    ends_long_gap[history.offsets[:-1][has_events]] = False  # a user's first event ends nothing
    returned_us = first_us.copy()
    returned_us[users[ends_long_gap]] = times_us[ends_long_gap]  # the newest of a user is written last

    days_back = (as_of_us - 1 - times_us) // MICROSECONDS_PER_DAY
    starts_day = (np.diff(days_back, prepend=-1) != 0) | (np.diff(users, prepend=-1) != 0)
    in_window = starts_day & (days_back < thresholds.dormant_days)
    active_days = np.bincount(users[in_window], minlength=history.num_users)
    return Rhythm(history.lengths, first_us, last_us, returned_us, active_days)


def states_of(rhythm: Rhythm, as_of_us: int | NDArray[np.int64], thresholds: LifecycleThresholds) -> NDArray[np.int8]:
    """State, an index into STATES, for each entry of the rhythm; moments broadcast against its arrays."""
    conditions = [
        rhythm.num_events == 0,
        as_of_us - rhythm.last_us >= thresholds.dormant_days * MICROSECONDS_PER_DAY,
        *_is_new_or_back(rhythm.first_us, rhythm.returned_us, as_of_us, thresholds),
    ]
    settled = _by_active_days(rhythm.active_days, thresholds)
    return np.select(conditions, [COLD, DORMANT, NEW, RESURRECTED], settled).astype(np.int8)


def _is_new_or_back(
    first_us: NDArray[np.int64],
    returned_us: NDArray[np.int64],
    as_of_us: int | NDArray[np.int64],
    thresholds: LifecycleThresholds,
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    new_after_us = as_of_us - thresholds.new_days * MICROSECONDS_PER_DAY
    return first_us > new_after_us, (returned_us > new_after_us) & (returned_us > first_us)


def _by_active_days(active_days: NDArray[np.int64], thresholds: LifecycleThresholds) -> NDArray[np.int8]:
    """Core, casual or marginal, by the share of active days of the window."""
    share = active_days / thresholds.dormant_days
    options = [share >= thresholds.core_active_share, share >= thresholds.casual_active_share]
    return np.select(options, [CORE, CASUAL], MARGINAL).astype(np.int8)


def _since(
    timelines: Timelines,
    rhythm: Rhythm,
    states: NDArray[np.int8],
    as_of_us: int,
    thresholds: LifecycleThresholds,
) -> NDArray[np.int64]:
    """When each user entered its state: exact for new, dormant and resurrected, to the day for the other three."""
    since = rhythm.first_us.copy()
    since[states == RESURRECTED] = rhythm.returned_us[states == RESURRECTED]
    since[states == DORMANT] = rhythm.last_us[states == DORMANT] + thresholds.dormant_days * MICROSECONDS_PER_DAY
    settled = np.flatnonzero(np.isin(states, (CORE, CASUAL, MARGINAL)))
    for start in range(0, len(settled), _CHUNK):
        rows = settled[start : start + _CHUNK]
        history = timelines.take(rows).before(as_of_us)
        days = _days_in_state(
            history, rhythm.first_us[rows], rhythm.returned_us[rows], states[rows], as_of_us, thresholds
        )
        since[rows] = as_of_us - days * MICROSECONDS_PER_DAY
    return since


def _days_in_state(
    history: Timelines,
    first_us: NDArray[np.int64],
    returned_us: NDArray[np.int64],
    states: NDArray[np.int8],
    as_of_us: int,
    thresholds: LifecycleThresholds,
) -> NDArray[np.int64]:
    """Whole days for which a core, casual or marginal user has been nothing else: the state of every past day k.

    The active days of the window that ended k days ago are a difference of two running sums; none means dormant.
    Before its newest long gap ended a user was dormant, so the gaps before that one are never asked for.
    """
    days_back = (as_of_us - 1 - history.times_us) // MICROSECONDS_PER_DAY
    depth, window = int(days_back.max()) + 1, thresholds.dormant_days
    is_active = np.zeros((history.num_users, 1 + depth + window), dtype=np.int32)
    is_active[history.user_rows, 1 + days_back] = 1
    running = np.cumsum(is_active, axis=1)
    active_days = running[:, window : window + depth] - running[:, :depth]
    asked_us = as_of_us - np.arange(depth) * MICROSECONDS_PER_DAY
    was_new, was_back = _is_new_or_back(first_us[:, None], returned_us[:, None], asked_us, thresholds)
    was_settled_alike = _by_active_days(active_days, thresholds) == states[:, None]
    was_other = (active_days == 0) | was_new | was_back | ~was_settled_alike
    # The first day of a history is never settled (new_days is 1 at least), so there is always another state to find.
    days_until_other: NDArray[np.int64] = np.argmax(was_other, axis=1)
    return days_until_other - 1
