"""count, sum and days of a rule: what each user did in the window that ends at as_of.

Shapes: U users, N events. A window of w is [as_of - w, as_of), days of it are days of 24 hours back from as_of.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from sonder.history.timelines import MICROSECONDS_PER_DAY, Timelines
from sonder.segments.rules.syntax import Field


def windowed_values(
    fields: Sequence[Field], timelines: Timelines, as_of_us_U: NDArray[np.int64], actions: Sequence[str]
) -> dict[str, NDArray[np.float64]]:
    """Values [U] of each field by its column. `actions` are the names of the action indices of `timelines`.

    The events of a user are summed in their order, so one user alone has the same sum as among others.
    """
    longest_us = max(field.window_us or 0 for field in fields)
    ages_us = np.repeat(as_of_us_U, timelines.lengths) - timelines.times_us
    is_asked = (ages_us > 0) & (ages_us <= longest_us)
    users, ages_us = timelines.user_rows[is_asked], ages_us[is_asked]
    acts, amounts = timelines.actions[is_asked], np.nan_to_num(timelines.values[is_asked], nan=0.0)
    found = {}
    for field in fields:
        chosen = ages_us <= (field.window_us or 0)
        if field.key is not None:
            chosen &= acts == (actions.index(field.key) if field.key in actions else len(actions))
        found[field.column] = _aggregate(field.kind, users[chosen], ages_us[chosen], amounts[chosen], len(as_of_us_U))
    return found


def _aggregate(
    kind: str, users: NDArray[np.int64], ages_us: NDArray[np.int64], amounts: NDArray[np.float64], num_users: int
) -> NDArray[np.float64]:
    if kind == "sum":
        return np.bincount(users, amounts, minlength=num_users).astype(np.float64)
    if kind == "days":
        days_back = (ages_us - 1) // MICROSECONDS_PER_DAY
        starts_day = (np.diff(days_back, prepend=-1) != 0) | (np.diff(users, prepend=-1) != 0)
        users = users[starts_day]
    return np.bincount(users, minlength=num_users).astype(np.float64)
