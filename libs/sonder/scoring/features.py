"""Execute a feature specification: history strictly before a cutoff -> one row of float32 per user.

Shapes: U users, N events before the cutoff, W windows, F features (specification.FeatureSpec.descriptions).
The same function runs in training, in batch and online; each row depends on its own user alone, so a user alone and in
a batch gives the same bits. A day is 24 hours back from the cutoff; a window of w days is [cutoff - w days, cutoff).
NaN says "never happened" (xgboost's own missing value); counts and sums are 0 then. A user without events is a row of
zeros and NaN. Shares are of the user's own events.
Embeddings are rounded to 1/4096: their last bits depend on who else was in the batch, and a tree's threshold lies
exactly on a value of the training, so a difference of 1e-8 there would be another score.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sonder.history.timelines import MICROSECONDS_PER_DAY, Timelines
from sonder.scoring.specification import DAY_PARTS, BoundSpec

MICROSECONDS_PER_HOUR = 3_600_000_000
_STEPS = np.float32(1 << 12)
_MONDAY = 3  # 1970-01-01 was a Thursday, the third day after a Monday


@dataclass(frozen=True)
class _Window:
    """A history seen from the cutoff."""

    history: Timelines
    users: NDArray[np.int64]  # [N]
    ages_us: NDArray[np.int64]  # [N] positive
    days_back: NDArray[np.int64]  # [N] 0 is the last 24 hours
    bands: NDArray[np.int64]  # [N] first window that holds the event, W for none
    num_bands: int  # W + 1

    @property
    def num_users(self) -> int:
        return self.history.num_users

    def cumulative(
        self, chosen_N: NDArray[np.bool_] | slice, groups_N: NDArray[np.int64] | None = None, num_groups: int = 1
    ) -> NDArray[np.float64]:
        """Count the chosen events per user, group and window -> [U, num_groups, W + 1], the last one ever."""
        keys = self.users[chosen_N] * num_groups
        if groups_N is not None:
            keys = keys + groups_N[chosen_N]
        counts = np.bincount(
            keys * self.num_bands + self.bands[chosen_N], minlength=self.num_users * num_groups * self.num_bands
        )
        return np.cumsum(counts.reshape(self.num_users, num_groups, self.num_bands), axis=2, dtype=np.float64)


def compute_features(
    bound: BoundSpec, timelines: Timelines, *, cutoff_us: int, embeddings_UD: NDArray[np.float32] | None = None
) -> NDArray[np.float32]:
    """Features of every user at the cutoff -> [U, F]; embeddings (of the same cutoff) iff the specification has any."""
    spec = bound.spec
    if (embeddings_UD is not None) != (spec.embedding_dim > 0):
        raise ValueError(f"embeddings given: {embeddings_UD is not None}, specified width: {spec.embedding_dim}")
    window = _look_back(timelines, cutoff_us, spec.windows_days)
    blocks: list[NDArray[Any]] = [
        _action_counts(window, bound),
        _active_days(window),
        *([_value_sums(window)] if spec.has_values else []),
        _recencies(window, bound),
        _gaps(window),
        _variety(window, len(bound.item_categories)),
        _rhythm(window),
        _category_mix(window, bound),
    ]
    if embeddings_UD is not None:
        blocks.append(np.rint(embeddings_UD * _STEPS) / _STEPS)
    features = np.concatenate([block.astype(np.float32) for block in blocks], axis=1)
    if features.shape[1] != spec.num_features:
        raise ValueError(f"{features.shape[1]} columns, the specification has {spec.num_features}")
    return features


def _look_back(timelines: Timelines, cutoff_us: int, windows_days: tuple[int, ...]) -> _Window:
    history = timelines.before(cutoff_us)
    days_back = (cutoff_us - 1 - history.times_us) // MICROSECONDS_PER_DAY
    return _Window(
        history=history,
        users=history.user_rows,
        ages_us=cutoff_us - history.times_us,
        days_back=days_back,
        bands=np.searchsorted(np.asarray(windows_days, dtype=np.int64), days_back, side="right"),
        num_bands=len(windows_days) + 1,
    )


def _action_counts(window: _Window, bound: BoundSpec) -> NDArray[np.float64]:
    """[U, (1 + actions) * (W + 1)]: any action first, unknown actions count there only."""
    num_groups = len(bound.spec.actions) + 1
    groups = bound.action_columns[window.history.actions]
    counts = window.cumulative(slice(None), groups, num_groups)
    any_action = counts.sum(axis=1, keepdims=True)
    return np.concatenate([any_action, counts[:, :-1]], axis=1).reshape(window.num_users, -1)


def _active_days(window: _Window) -> NDArray[np.float64]:
    return window.cumulative(_starts_day(window))[:, 0]


def _value_sums(window: _Window) -> NDArray[np.float64]:
    values = np.nan_to_num(window.history.values, nan=0.0, posinf=0.0, neginf=0.0)
    keys = window.users * window.num_bands + window.bands
    sums = np.bincount(keys, values, minlength=window.num_users * window.num_bands)
    return np.cumsum(sums.reshape(window.num_users, window.num_bands), axis=1)


def _recencies(window: _Window, bound: BoundSpec) -> NDArray[np.float64]:
    """Days since the last event of any and of each action, then since the first event; NaN where never."""
    num_actions = len(bound.spec.actions)
    newest = np.full((window.num_users, num_actions + 1), np.nan)
    groups = bound.action_columns[window.history.actions]
    newest[window.users, groups] = window.ages_us / MICROSECONDS_PER_DAY  # times ascend: the newest is written last
    last, first = _last_and_first(window)
    return np.column_stack([last, newest[:, :num_actions], first])


def _gaps(window: _Window) -> NDArray[np.float64]:
    """Mean, spread and longest of the days between active days, and the current gap relative to the mean."""
    days, users = window.days_back[_starts_day(window)], window.users[_starts_day(window)]
    is_gap = np.diff(users) == 0
    gaps, users = -np.diff(days)[is_gap].astype(np.float64), users[1:][is_gap]
    count = np.bincount(users, minlength=window.num_users)
    known = count > 0
    safe = np.maximum(count, 1)
    mean = np.bincount(users, gaps, minlength=window.num_users) / safe
    square = np.bincount(users, gaps**2, minlength=window.num_users) / safe
    longest = np.zeros(window.num_users)
    np.maximum.at(longest, users, gaps)
    last, _ = _last_and_first(window)
    columns = np.column_stack(
        [mean, np.sqrt(np.maximum(square - mean**2, 0.0)), longest, last / np.where(known, mean, 1)]
    )
    columns[~known] = np.nan
    return columns


def _variety(window: _Window, num_items: int) -> NDArray[np.float64]:
    """Number of different items, and events per different item (unknown items together count as one)."""
    items = np.where(window.history.items < 0, num_items, window.history.items).astype(np.int64)
    distinct = np.unique(window.users * (num_items + 1) + items) // (num_items + 1)
    different = np.bincount(distinct, minlength=window.num_users).astype(np.float64)
    return np.column_stack([different, _share(window.history.lengths, different)])


def _rhythm(window: _Window) -> NDArray[np.float64]:
    """Share of events in each part of the day, and on weekends; UTC."""
    times_us = window.history.times_us
    num_parts = len(DAY_PARTS)
    parts = times_us // MICROSECONDS_PER_HOUR % 24 * num_parts // 24
    counts = np.bincount(window.users * num_parts + parts, minlength=window.num_users * num_parts)
    is_weekend = (times_us // MICROSECONDS_PER_DAY + _MONDAY) % 7 >= 5
    weekend = np.bincount(window.users[is_weekend], minlength=window.num_users)
    columns = np.column_stack([counts.reshape(window.num_users, num_parts), weekend])
    return _share(columns, window.history.lengths[:, None])


def _category_mix(window: _Window, bound: BoundSpec) -> NDArray[np.float64]:
    width = len(bound.spec.categories) + 1
    categories = bound.item_categories[window.history.items]
    counts = np.bincount(window.users * width + categories, minlength=window.num_users * width)
    mix = _share(counts.reshape(window.num_users, width), window.history.lengths[:, None])
    return mix[:, : width - 1]


def _starts_day(window: _Window) -> NDArray[np.bool_]:
    """The first event of each active day of each user [N]."""
    starts: NDArray[np.bool_] = (np.diff(window.days_back, prepend=-1) != 0) | (np.diff(window.users, prepend=-1) != 0)
    return starts


def _last_and_first(window: _Window) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Days since the last and since the first event [U], NaN without events."""
    offsets, has_events = window.history.offsets, window.history.lengths > 0
    last, first = np.full(window.num_users, np.nan), np.full(window.num_users, np.nan)
    last[has_events] = window.ages_us[offsets[1:][has_events] - 1] / MICROSECONDS_PER_DAY
    first[has_events] = window.ages_us[offsets[:-1][has_events]] / MICROSECONDS_PER_DAY
    return last, first


def _share(parts: NDArray[np.generic], whole: NDArray[np.generic]) -> NDArray[np.float64]:
    """parts / whole, NaN where the whole is 0."""
    whole_float = np.asarray(whole, dtype=np.float64)
    shares: NDArray[np.float64] = np.asarray(parts, dtype=np.float64) / np.where(whole_float == 0, np.nan, whole_float)
    return shares
