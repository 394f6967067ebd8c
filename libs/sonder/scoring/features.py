"""Execute a feature specification: history strictly before a cutoff -> one row of float32 per user.

Shapes: U users, N events before the cutoff, W windows and ever, K kinds of event (any, then each action), F features.
The same function runs in training, in batch and online; each row depends on its own user alone, so a user alone and in
a batch gives the same bits. A day is 24 hours back from the cutoff; a window of w days is [cutoff - w days, cutoff).
NaN says "never happened" (xgboost's own missing value); counts and sums are 0 then. A user without events is a row of
zeros and NaN. Shares are of the user's own events. scoring.columns says every column in words.
What other floors know of the same users at the same cutoff comes in as arrays, because siblings are strangers:
sonder.profiles.user_features brings them all together and is what jobs and services call.
Embeddings are rounded to 1/4096: their last bits depend on who else was in the batch, and a tree's threshold lies
exactly on a value of the training, so a difference of 1e-8 there would be another score.
Limits: NaN and infinite values of events count as absent.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sonder.history.timelines import MICROSECONDS_PER_DAY, Timelines
from sonder.scoring.columns import INTERESTS
from sonder.scoring.gaps import day_gaps, starts_day, starts_session
from sonder.scoring.specification import BoundSpec, FeatureSpec

ROUNDING = 1 << 12  # of the embedding: steps per unit
NUM_DAY_PARTS = 4
_PART_US = MICROSECONDS_PER_DAY // NUM_DAY_PARTS
_MONDAY = 3  # 1970-01-01 was a Thursday, the third day after a Monday
_USERS_AT_ONCE = 4096  # what lies between the events and the columns stays in the cache

Floats = NDArray[np.float64]
Indices = NDArray[np.int64]


@dataclass(frozen=True)
class _View:
    """A history seen from the cutoff."""

    bound: BoundSpec
    history: Timelines
    users: Indices  # [N]
    ages_us: Indices  # [N] positive
    days_back: Indices  # [N] 0 is the last 24 hours
    bands: Indices  # [N] first window that holds the event, the last one is ever
    last_days: Floats  # [U] since the last event, NaN without events
    first_days: Floats  # [U] since the first

    @property
    def num_users(self) -> int:
        return self.history.num_users

    @property
    def spec(self) -> FeatureSpec:
        return self.bound.spec

    @property
    def num_bands(self) -> int:
        return len(self.spec.windows_days) + 1

    def per_band(self, rows: Indices, num_rows: int, weights: Floats | None = None) -> NDArray[Any]:
        """Count (or sum) per user, row and band; a row is user * rows per user + place -> [U, rows per user, W]."""
        keys = rows * self.num_bands
        keys += self.bands
        counts = np.bincount(keys, weights, minlength=num_rows * self.num_bands)
        return counts.reshape(self.num_users, -1, self.num_bands)


def compute_features(
    bound: BoundSpec,
    timelines: Timelines,
    *,
    cutoff_us: int,
    embeddings_UD: NDArray[np.float32] | None = None,
    states_U: NDArray[np.integer[Any]] | None = None,
    interests_UI: Floats | None = None,
) -> NDArray[np.float32]:
    """Features of every user at the cutoff -> [U, F]. The arrays are of the same users and cutoff, each iff specified.

    `states_U`: place of the lifecycle in spec.states, -1 for none of them; `interests_UI`: columns.INTERESTS.
    """
    spec = bound.spec
    _check_given("embeddings", embeddings_UD, spec.embedding_dim)
    _check_given("states", states_U, len(spec.states))
    _check_given("interests", interests_UI, int(spec.reads_interests))
    features = np.empty((timelines.num_users, spec.num_features), dtype=np.float32)
    for start in range(0, timelines.num_users, _USERS_AT_ONCE):
        end = start + _USERS_AT_ONCE
        history = timelines if timelines.num_users <= _USERS_AT_ONCE else _slice(timelines, start, end)
        _fill(features[start:end, : _num_of_history(spec)], _plain_blocks(bound, history, cutoff_us))
    first = spec.num_plain
    if embeddings_UD is not None:
        features[:, first:] = np.rint(embeddings_UD * np.float32(ROUNDING)) / np.float32(ROUNDING)
    if interests_UI is not None:
        first -= interests_UI.shape[1]
        features[:, first : first + interests_UI.shape[1]] = interests_UI
    if states_U is not None:
        first -= len(spec.states)
        features[:, first : first + len(spec.states)] = states_U[:, None] == np.arange(len(spec.states))
    features[np.isnan(features)] = np.nan  # one pattern of bits for all of them
    return features


def _check_given(name: str, array: NDArray[Any] | None, width: int) -> None:
    if (array is not None) != (width > 0):
        raise ValueError(f"{name} given: {array is not None}, specified width: {width}")


def _num_of_history(spec: FeatureSpec) -> int:
    """Columns made of history alone; lifecycle, interests and the embedding follow."""
    return spec.num_plain - len(spec.states) - (len(INTERESTS) if spec.reads_interests else 0)


def _fill(features_UF: NDArray[np.float32], blocks: Iterator[NDArray[Any]]) -> None:
    """Write the blocks side by side; together they are exactly as wide as the specification says."""
    first = 0
    with np.errstate(divide="ignore", invalid="ignore"):  # 0 / 0 is how "never happened" is said
        for block in blocks:
            flat = block.reshape(len(features_UF), -1)
            features_UF[:, first : first + flat.shape[1]] = flat
            first += flat.shape[1]
    if len(features_UF) and first != features_UF.shape[1]:
        raise ValueError(f"{first} columns of history, the specification has {features_UF.shape[1]}")


def _slice(timelines: Timelines, start: int, end: int) -> Timelines:
    """The users [start, end) without a copy of their events."""
    offsets = timelines.offsets[start : end + 1]
    here = slice(int(offsets[0]), int(offsets[-1]))
    return Timelines(
        user_ids=timelines.user_ids[start:end],
        offsets=offsets - offsets[0],
        items=timelines.items[here],
        actions=timelines.actions[here],
        surfaces=timelines.surfaces[here],
        times_us=timelines.times_us[here],
        values=timelines.values[here],
    )


def _look_back(bound: BoundSpec, timelines: Timelines, cutoff_us: int) -> _View:
    history = timelines.before(cutoff_us)
    ages_us = cutoff_us - history.times_us
    days_back = (ages_us - 1) // MICROSECONDS_PER_DAY
    last, first = np.full((2, history.num_users), np.nan)
    has_events = history.lengths > 0
    last[has_events] = ages_us[history.offsets[1:][has_events] - 1]
    first[has_events] = ages_us[history.offsets[:-1][has_events]]
    return _View(
        bound=bound,
        history=history,
        users=history.user_rows,
        ages_us=ages_us,
        days_back=days_back,
        bands=bound.day_bands[np.minimum(days_back, len(bound.day_bands) - 1)],
        last_days=last / MICROSECONDS_PER_DAY,
        first_days=first / MICROSECONDS_PER_DAY,
    )


def _plain_blocks(bound: BoundSpec, timelines: Timelines, cutoff_us: int) -> Iterator[NDArray[Any]]:
    """Blocks of columns [U, …], each made of history alone, in the order of columns.describe."""
    view = _look_back(bound, timelines, cutoff_us)
    actions = bound.action_columns[view.history.actions]
    counts = _event_counts(view, actions)  # [U, K, W]
    starts = starts_day(view.users, view.days_back)
    yield counts
    yield _starts(view, starts)
    yield _starts(view, starts_session(view.users, view.ages_us))
    different = _different_items(view)
    yield different
    sums = None
    if view.spec.has_values:
        sums, mean, largest = _values(view)
        yield from (sums, mean, largest)
    yield from _trends(view, counts)
    yield from _ratios(view, counts, sums)
    yield view.last_days
    yield _since_last(view, actions, len(view.spec.actions))
    yield view.first_days
    yield day_gaps(view.users[starts], view.days_back[starts], view.last_days)
    yield counts[:, 0, -1] / different[:, -1]
    yield _rhythm(view)
    if view.spec.categories:
        yield from _categories(view, counts[:, 0])


def _event_counts(view: _View, actions_N: Indices) -> NDArray[np.int64]:
    """Events of any and of each action; unknown actions count as any alone -> [U, K, W]."""
    num_kinds = len(view.spec.actions) + 1
    counts = view.per_band(view.users * num_kinds + actions_N, view.num_users * num_kinds)
    by_kind = np.empty_like(counts)
    counts.sum(axis=1, out=by_kind[:, 0])
    by_kind[:, 1:] = counts[:, :-1]
    return by_kind.cumsum(axis=2)


def _starts(view: _View, starts_N: NDArray[np.bool_]) -> NDArray[np.int64]:
    """How many of these events -> [U, W]."""
    keys = (view.users * view.num_bands + view.bands)[starts_N]
    counts = np.bincount(keys, minlength=view.num_users * view.num_bands)
    return counts.reshape(view.num_users, -1).cumsum(axis=1)


def _different_items(view: _View) -> NDArray[np.int64]:
    """Different items per window (unknown items together count as one) -> [U, W].

    Sorted by user, item and band, the first of each item is its newest: the narrowest window that holds it.
    """
    num_items, num_bands = len(view.bound.item_categories), view.num_bands
    keys = view.users * num_items + view.history.items + 1  # -1, unknown, comes first
    keys *= num_bands
    keys += view.bands
    keys.sort()
    items = keys // num_bands
    is_newest = np.empty(len(keys), dtype=np.bool_)
    is_newest[:1] = True
    np.not_equal(items[1:], items[:-1], out=is_newest[1:])
    newest = items[is_newest] // num_items * num_bands + keys[is_newest] % num_bands
    counts = np.bincount(newest, minlength=view.num_users * num_bands)
    return counts.reshape(view.num_users, num_bands).cumsum(axis=1)


def _values(view: _View) -> tuple[Floats, Floats, Floats]:
    """Sum, mean and largest of the values of events per window -> three of [U, W]."""
    values, keys, size = view.history.values, view.users * view.num_bands + view.bands, view.num_users * view.num_bands
    known = np.isfinite(values)
    if not known.all():
        values, keys = values[known], keys[known]
    shape = (view.num_users, view.num_bands)
    sums = np.bincount(keys, values, minlength=size).reshape(shape).cumsum(axis=1)
    counts = np.bincount(keys, minlength=size).reshape(shape).cumsum(axis=1)
    largest = np.full(size, -np.inf)
    np.maximum.at(largest, keys, values)
    widest = np.maximum.accumulate(largest.reshape(shape), axis=1)
    return sums, sums / counts, np.where(counts > 0, widest, np.nan)


def _trends(view: _View, counts_UKW: NDArray[np.int64]) -> Iterator[Floats]:
    """The newer half of twice a window, then the rate of a window relative to that of the whole life."""
    spec = view.spec
    if spec.trend_days:
        half = [spec.windows_days.index(days) for days in spec.trend_days]
        whole = [spec.windows_days.index(2 * days) for days in spec.trend_days]
        yield counts_UKW[:, :, half] / counts_UKW[:, :, whole]
    if spec.compared_days:
        chosen = [spec.windows_days.index(days) for days in spec.compared_days]
        days = np.array(spec.compared_days, dtype=np.float64)
        lives = np.maximum(view.first_days[:, None], days) / days
        yield counts_UKW[:, :, chosen] * lives[:, None] / counts_UKW[:, :, -1:]


def _ratios(view: _View, counts_UKW: NDArray[np.int64], sums_UW: Floats | None) -> Iterator[Floats]:
    """Share of each action among all events, and value per event, in a short and a long window."""
    chosen = [view.spec.windows_days.index(days) for days in view.spec.compared_days]
    if not chosen:
        return
    events = counts_UKW[:, :1, chosen]
    if view.spec.compared_actions:
        yield counts_UKW[:, 1:, chosen] / events
    if sums_UW is not None:
        yield sums_UW[:, chosen] / events[:, 0]


def _since_last(view: _View, groups_N: Indices, num_groups: int) -> Floats:
    """Days since the last event of each group; events of the group `num_groups` are of none -> [U, groups]."""
    newest = np.full((view.num_users, num_groups + 1), np.nan)
    newest[view.users, groups_N] = view.ages_us  # times ascend: the newest is written last
    days: Floats = newest[:, :num_groups] / MICROSECONDS_PER_DAY
    return days


def _rhythm(view: _View) -> Floats:
    """Share of events in each part of the day, and on weekends; UTC."""
    parts = view.history.times_us // _PART_US
    is_weekend = (parts // NUM_DAY_PARTS + _MONDAY) % 7 >= 5
    keys = view.users * (2 * NUM_DAY_PARTS) + parts % NUM_DAY_PARTS + is_weekend * NUM_DAY_PARTS
    counts = np.bincount(keys, minlength=view.num_users * 2 * NUM_DAY_PARTS).reshape(view.num_users, 2, NUM_DAY_PARTS)
    columns = np.empty((view.num_users, NUM_DAY_PARTS + 1))
    columns[:, :-1] = counts.sum(axis=1)
    columns[:, -1] = counts[:, 1].sum(axis=1)
    return columns / view.history.lengths[:, None]


def _categories(view: _View, counts_UW: NDArray[np.int64]) -> Iterator[Floats]:
    """Share of events in each category, ever and lately, and the days since the last one there."""
    num = len(view.spec.categories)
    categories = view.bound.item_categories[view.history.items]
    counts = view.per_band(view.users * (num + 1) + categories, view.num_users * (num + 1))[:, :num]
    yield counts.sum(axis=2) / counts_UW[:, -1:]
    for days in view.spec.recent_days:
        recent = view.spec.windows_days.index(days)
        yield counts[:, :, : recent + 1].sum(axis=2) / counts_UW[:, recent, None]
    yield _since_last(view, categories, num)
