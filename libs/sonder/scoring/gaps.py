"""When a user comes back: active days, sessions and the gaps between active days, seen from a cutoff.

Shapes: U users, N events by user, then time; S active days, one entry each, by user, then time. Days are counted back
from the cutoff: 0 is the last 24 hours.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

PAUSE_US = 30 * 60 * 1_000_000  # without an event, after which the next one begins a session
NUM_GAP_COLUMNS = 5


def starts_day(users_N: NDArray[np.int64], days_back_N: NDArray[np.int64]) -> NDArray[np.bool_]:
    """The first event of each active day of each user [N]."""
    starts = np.empty(len(users_N), dtype=np.bool_)
    starts[:1] = True
    np.not_equal(days_back_N[1:], days_back_N[:-1], out=starts[1:])
    starts[1:] |= users_N[1:] != users_N[:-1]
    return starts


def starts_session(users_N: NDArray[np.int64], ages_us_N: NDArray[np.int64]) -> NDArray[np.bool_]:
    """The first event after each pause of each user [N]."""
    starts = np.empty(len(users_N), dtype=np.bool_)
    starts[:1] = True
    np.greater_equal(ages_us_N[:-1] - ages_us_N[1:], PAUSE_US, out=starts[1:])
    starts[1:] |= users_N[1:] != users_N[:-1]
    return starts


def day_gaps(
    users_S: NDArray[np.int64], days_back_S: NDArray[np.int64], last_days_U: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Mean, spread, longest and last of the gaps between active days, and the current one over the mean -> [U, 5].

    Gaps are in days; NaN where a user has no second active day. `last_days`: since the last event.
    """
    num_users = len(last_days_U)
    is_gap = users_S[1:] == users_S[:-1]
    gaps = (days_back_S[:-1] - days_back_S[1:])[is_gap].astype(np.float64)
    users = users_S[1:][is_gap]
    count = np.bincount(users, minlength=num_users)
    columns = np.zeros((num_users, NUM_GAP_COLUMNS))
    mean, spread, longest, last, current = columns.T
    np.divide(np.bincount(users, gaps, minlength=num_users), count, out=mean)
    square = np.bincount(users, gaps * gaps, minlength=num_users) / count
    np.sqrt(np.maximum(square - mean * mean, 0.0), out=spread)
    np.maximum.at(longest, users, gaps)
    last[users] = gaps  # times ascend: the newest is written last
    np.divide(last_days_U, mean, out=current)
    columns[count == 0] = np.nan
    return columns
