"""Where an interest is going: new, growing, stable or fading, from when its events happened.

Let H be the half-life, the *recent* events those of [as_of - H, as_of), the *earlier* ones those before. In this order:
new       the interest's first event is recent
fading    its last event is at least two half-lives old (its weight has lost three quarters), or
          its share of the user's recent events is at most 1/GROWTH of its share of the earlier ones
growing   its share of the recent events is at least GROWTH times its share of the earlier ones
stable    anything else
Both shares are smoothed by one event spread over the user's interests in proportion to their size, which damps what
a single event says in a short history; a user without recent events has no trend at all. The two shares are given with
the state: they are its evidence.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

INTEREST_STATES = ("new", "growing", "stable", "fading")
NEW, GROWING, STABLE, FADING = range(4)
GROWTH = 1.5


@dataclass(frozen=True)
class Trends:
    """State of each of C interests and the shares that it was judged by, smoothed as above."""

    states: NDArray[np.int8]  # [C] an index into INTEREST_STATES
    recent_shares: NDArray[np.float64]  # [C] of the user's recent events
    earlier_shares: NDArray[np.float64]  # [C] of the user's earlier ones


def interest_trends(
    users_C: NDArray[np.int64],
    num_events_C: NDArray[np.int64],
    num_recent_C: NDArray[np.int64],
    age_days_C: NDArray[np.float64],
    recency_days_C: NDArray[np.float64],
    *,
    half_life_days: float,
) -> Trends:
    """Judge each of C interests among those of its user; `users_C` is the row of the user."""
    per_user = int(users_C.max(initial=-1)) + 1
    all_events = np.bincount(users_C, num_events_C, minlength=per_user)[users_C]
    all_recent = np.bincount(users_C, num_recent_C, minlength=per_user)[users_C]
    prior = num_events_C / all_events
    recent_shares = (num_recent_C + prior) / (all_recent + 1)
    earlier_shares = (num_events_C - num_recent_C + prior) / (all_events - all_recent + 1)
    trend = recent_shares / earlier_shares
    conditions: Sequence[NDArray[Any]] = (
        age_days_C <= half_life_days,
        (recency_days_C >= 2 * half_life_days) | (trend <= 1 / GROWTH),
        trend >= GROWTH,
    )
    states = np.select(conditions, [NEW, FADING, GROWING], STABLE).astype(np.int8)
    return Trends(states, recent_shares, earlier_shares)
