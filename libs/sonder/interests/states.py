"""Where an interest is going: new, growing, stable or fading, from when its events happened.

Let H be the half-life, the *recent* events those of [as_of - H, as_of), the *earlier* ones those before. In this order:
new       the interest's first event is recent
fading    its last event is at least two half-lives old (its weight has lost three quarters), or
          its share of the user's recent events is at most 1/GROWTH of its share of the earlier ones
growing   its share of the recent events is at least GROWTH times its share of the earlier ones
stable    anything else
Both shares are smoothed by one event spread over the user's interests in proportion to their size, which damps what
a single event says in a short history; a user without recent events has no trend at all.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

INTEREST_STATES = ("new", "growing", "stable", "fading")
NEW, GROWING, STABLE, FADING = range(4)
GROWTH = 1.5


def interest_states(
    users_C: NDArray[np.int64],
    num_events_C: NDArray[np.int64],
    num_recent_C: NDArray[np.int64],
    age_days_C: NDArray[np.float64],
    recency_days_C: NDArray[np.float64],
    *,
    half_life_days: float,
) -> NDArray[np.int8]:
    """State of each of C interests, an index into INTEREST_STATES; `users_C` is the row of its user."""
    per_user = int(users_C.max(initial=-1)) + 1
    all_events = np.bincount(users_C, num_events_C, minlength=per_user)[users_C]
    all_recent = np.bincount(users_C, num_recent_C, minlength=per_user)[users_C]
    prior = num_events_C / all_events
    recent_share = (num_recent_C + prior) / (all_recent + 1)
    earlier_share = (num_events_C - num_recent_C + prior) / (all_events - all_recent + 1)
    trend = recent_share / earlier_share
    conditions: Sequence[NDArray[Any]] = (
        age_days_C <= half_life_days,
        (recency_days_C >= 2 * half_life_days) | (trend <= 1 / GROWTH),
        trend >= GROWTH,
    )
    return np.select(conditions, [NEW, FADING, GROWING], STABLE).astype(np.int8)
