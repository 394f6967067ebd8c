"""What users do, as shares that can be averaged over a cluster: the material of its portrait and of its name.

Every trait of a user is a number in [0, 1], and every user counts the same however busy:
category   share of the user's wanted events below a node of the taxonomy, every level a trait of its own; in a
           catalogue without categories the words of the titles instead (word), without titles the items (item)
action     share of each action among the user's events of actions that weigh something (not what was only shown)
activity   light, regular or heavy: thirds of the users by their number of events
lifecycle  the state, one of them 1
time       share of the events in each part of the week, UTC; left out with lifecycle where the log has no dates

Shapes: U users, K clusters, I items, F traits.
Limits: the MAX_ITEMS most frequent items and MAX_WORDS most frequent words; words of three letters or more.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from sonder.events.contract import Col
from sonder.history.timelines import MICROSECONDS_PER_DAY, Timelines
from sonder.history.vocabulary import Vocabulary
from sonder.segments.lifecycle import STATES

CONTENT_KINDS = ("category", "word", "item")
ACTIVITY = ("light", "regular", "heavy")
DAY_PARTS = ("nights", "mornings", "afternoons", "evenings")  # of six hours, from midnight
WEEK_PARTS = tuple(f"{day} {part}" for day in ("weekday", "weekend") for part in DAY_PARTS)
MAX_ITEMS, MAX_WORDS = 200_000, 2_000
_WORD = re.compile(r"[^\W\d_]{3,}")
_FIRST_MONDAY = 4  # day 0 of 1970 was a Thursday


class Trait(NamedTuple):
    kind: str  # category, word, item, action, activity, lifecycle or time
    key: str


def trait_shares(
    timelines: Timelines,
    vocabulary: Vocabulary,
    lifecycle_U: Sequence[str],
    rows_U: NDArray[np.integer[Any]],
    num_clusters: int,
    *,
    has_dates: bool = True,
) -> tuple[list[Trait], NDArray[np.float64], NDArray[np.int64]]:
    """Traits [F], their sums over the users of each cluster and of all [K + 1, F], and the numbers of users [K + 1].

    `timelines` is cut at as_of by the caller; users in no cluster (a negative row) are in no number.
    """
    inside_U = rows_U >= 0
    num_inside = int(inside_U.sum())
    members_KU = csr_array(
        (np.ones(num_inside), (rows_U[inside_U], np.flatnonzero(inside_U))), shape=(num_clusters, timelines.num_users)
    )
    parts = [_content(timelines, vocabulary, members_KU), _actions(timelines, vocabulary, members_KU)]
    parts.append(_one_hot("activity", ACTIVITY, _activity(timelines, inside_U), members_KU))
    if has_dates:
        states_U = np.array([STATES.index(state) for state in lifecycle_U], dtype=np.int64)
        parts += [_one_hot("lifecycle", STATES, states_U, members_KU), _times(timelines, members_KU)]
    traits = [trait for found, _ in parts for trait in found]
    sums_KF = np.concatenate([sums for _, sums in parts], axis=1)
    users_K = np.bincount(rows_U[inside_U], minlength=num_clusters)
    return traits, np.vstack([sums_KF, sums_KF.sum(axis=0)]), np.append(users_K, num_inside)


def _content(
    timelines: Timelines, vocabulary: Vocabulary, members_KU: csr_array
) -> tuple[list[Trait], NDArray[np.float64]]:
    known = min(vocabulary.num_items, MAX_ITEMS)
    wanted = timelines.keep((vocabulary.weight_of(timelines.actions) > 0) & (timelines.items >= 0))
    sums_KI = _mean_sums(wanted, wanted.items, vocabulary.num_items, members_KU)[:, :known]
    traits, labels_IF = _item_labels(vocabulary, known)
    return traits, np.asarray((sums_KI @ labels_IF).todense())


def _item_labels(vocabulary: Vocabulary, known: int) -> tuple[list[Trait], csr_array]:
    """Content traits, and which items carry which [I, F]."""
    items = vocabulary.items.slice(0, known)
    categories, titles = (items.column(name).to_pylist() for name in (Col.CATEGORY, Col.TITLE))
    if any(categories):
        kind, labels = "category", [_levels(path) for path in categories]
    elif any(titles):
        words = [sorted(set(_WORD.findall(title.lower()))) if title else [] for title in titles]
        common = {word for word, _ in Counter(word for found in words for word in found).most_common(MAX_WORDS)}
        kind, labels = "word", [[word for word in found if word in common] for found in words]
    else:
        kind, labels = "item", [[item_id] for item_id in items.column(Col.ITEM_ID).to_pylist()]
    place = {key: number for number, key in enumerate(sorted({key for found in labels for key in found}))}
    rows = np.repeat(np.arange(known), [len(found) for found in labels])
    columns = np.array([place[key] for found in labels for key in found], dtype=np.int64)
    matrix = csr_array((np.ones(len(rows)), (rows, columns)), shape=(known, len(place)))
    return [Trait(kind, key) for key in place], matrix


def _levels(path: str | None) -> list[str]:
    parts = path.split("/") if path else []
    return ["/".join(parts[: depth + 1]) for depth in range(len(parts))]


def _actions(
    timelines: Timelines, vocabulary: Vocabulary, members_KU: csr_array
) -> tuple[list[Trait], NDArray[np.float64]]:
    weighed = timelines.keep(vocabulary.weight_of(timelines.actions) != 0)
    sums_KF = _mean_sums(weighed, weighed.actions, len(vocabulary.actions), members_KU)
    return [Trait("action", action) for action in vocabulary.actions], sums_KF.toarray()


def _times(timelines: Timelines, members_KU: csr_array) -> tuple[list[Trait], NDArray[np.float64]]:
    days, in_day_us = np.divmod(timelines.times_us, MICROSECONDS_PER_DAY)
    is_weekend = (days - _FIRST_MONDAY) % 7 >= 5
    parts_N = is_weekend * len(DAY_PARTS) + in_day_us * len(DAY_PARTS) // MICROSECONDS_PER_DAY
    sums_KF = _mean_sums(timelines, parts_N, len(WEEK_PARTS), members_KU)
    return [Trait("time", part) for part in WEEK_PARTS], sums_KF.toarray()


def _activity(timelines: Timelines, inside_U: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Third of each user by number of events; equal numbers are in the same third."""
    if not inside_U.any():
        return np.zeros(timelines.num_users, np.int64)
    bounds = np.quantile(timelines.lengths[inside_U], [1 / 3, 2 / 3], method="lower")
    return np.searchsorted(bounds, timelines.lengths, side="left").astype(np.int64)


def _one_hot(
    kind: str, keys: Sequence[str], column_U: NDArray[np.int64], members_KU: csr_array
) -> tuple[list[Trait], NDArray[np.float64]]:
    num = len(column_U)
    ones_UF = csr_array((np.ones(num), (np.arange(num), column_U)), shape=(num, len(keys)))
    return [Trait(kind, key) for key in keys], (members_KU @ ones_UF).toarray()


def _mean_sums(
    timelines: Timelines, columns_N: NDArray[np.integer[Any]], num_columns: int, members_KU: csr_array
) -> csr_array:
    """Sums over each cluster of the share of a user's events in each column -> [K, columns]."""
    shares_N = 1.0 / timelines.lengths[timelines.user_rows]
    shape = (timelines.num_users, num_columns)
    return csr_array(members_KU @ csr_array((shares_N, (timelines.user_rows, columns_N)), shape=shape))
