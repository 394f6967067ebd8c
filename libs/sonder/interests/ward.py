"""Cluster each user's recent items into interests: Ward clustering, a medoid as the face, decayed time as weight.

Shapes: U users, N events, P distinct (user, item) pairs, C clusters, I items, D embedding width.
Source: PinnerSage (Pal et al., KDD 2020, algorithms 1 and 2): no fixed number of clusters, merging ends at a distance;
the medoid is the item that minimises the squared distance to its cluster; weight is a sum over decayed events.

The items of a user's newest `max_events` wanted events are clustered. Evidence (weight, counts, first, last, state) is
every wanted event of the whole history on these items, so that a busy week does not make an old interest look new.
Weight is the sum of `action weight * 2^(-age / half-life)`, 1 in all over the interests that are kept.
A wanted event has an action of positive weight on an item with a vector. Events at `as_of` or later do not exist here.
Limits: memory and time grow with the square of a user's distinct items (`max_events`): see interests.clusters.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from sonder.core.config import InterestsConfig
from sonder.events.contract import TIMESTAMP_TYPE, Col
from sonder.history.timelines import MICROSECONDS_PER_DAY, Timelines
from sonder.history.vocabulary import Vocabulary
from sonder.interests.clusters import ward_clusters
from sonder.interests.derive import derive_config, is_known_vector
from sonder.interests.naming import Naming
from sonder.interests.states import INTEREST_STATES, Trends, interest_trends

DAYS_PER_WEEK = 7.0
PAIRS_AT_ONCE = 1 << 13  # rows of vectors that are gathered at once for the medoids: they stay in the cache

INTEREST_SCHEMA = pa.schema(
    [
        pa.field("user_id", pa.string(), nullable=False),
        pa.field("rank", pa.int16(), nullable=False),  # 1 is the strongest
        pa.field("name", pa.string(), nullable=False),  # readable, from the catalogue: interests.naming
        pa.field("medoid_item_id", pa.string(), nullable=False),
        pa.field("title", pa.string()),  # of the medoid
        pa.field("category", pa.string()),  # the most common one of the cluster's items
        pa.field("weight", pa.float32(), nullable=False),  # sum 1 per user
        pa.field("num_events", pa.int32(), nullable=False),
        pa.field("events_per_week", pa.float32(), nullable=False),  # since the first one, over a week at least
        pa.field("first_at", TIMESTAMP_TYPE, nullable=False),
        pa.field("last_at", TIMESTAMP_TYPE, nullable=False),
        pa.field("age_days", pa.float32(), nullable=False),  # since the first event
        pa.field("recency_days", pa.float32(), nullable=False),  # since the last one
        pa.field("state", pa.string(), nullable=False),  # interests.states, and its evidence:
        pa.field("recent_days", pa.float32(), nullable=False),  # before as_of; what counts as recent, the half-life
        pa.field("num_recent", pa.int32(), nullable=False),  # of num_events
        pa.field("recent_share", pa.float32(), nullable=False),  # of the user's recent events, smoothed by one event
        pa.field("earlier_share", pa.float32(), nullable=False),  # of the user's earlier ones
        pa.field("medoid_index", pa.int32(), nullable=False),
    ]
)


@dataclass(frozen=True)
class _Pairs:
    """Distinct (user, item) pairs to cluster, by user, then item; and the events that are evidence for them."""

    users: NDArray[np.int64]  # [P]
    items: NDArray[np.int64]  # [P]
    event_pairs: NDArray[np.int64]  # [E] pair of each event
    event_times_us: NDArray[np.int64]  # [E]
    event_weights: NDArray[np.float64]  # [E] decayed, relative to the user's newest event


@dataclass(frozen=True)
class Evidence:
    """Per cluster, from all wanted events on its items; arrays of [C]."""

    weights: NDArray[np.float64]
    num_events: NDArray[np.int64]
    first_us: NDArray[np.int64]
    last_us: NDArray[np.int64]
    num_recent: NDArray[np.int64]
    age_days: NDArray[np.float64]
    recency_days: NDArray[np.float64]
    trends: Trends


@dataclass(frozen=True)
class FoundInterests:
    """The interests that are kept, by user, then falling weight; their places among all clusters are `kept`."""

    users: NDArray[np.int64]  # [kept] row of the user
    ranks: NDArray[np.int64]  # [kept] 1 is the strongest
    medoids: NDArray[np.int64]  # [kept] item_index
    kept: NDArray[np.int64]  # [kept] cluster
    evidence: Evidence  # of all clusters
    clusters_P: NDArray[np.int64]  # [P] cluster of each (user, item) pair
    items_P: NDArray[np.int64]  # [P]
    half_life_days: float


def cluster_interests(
    timelines: Timelines,
    vectors_ID: NDArray[np.float32],
    vocabulary: Vocabulary,
    *,
    as_of_us: int,
    config: InterestsConfig,
    naming: Naming | None = None,
    is_known_I: NDArray[np.bool_] | None = None,
) -> pa.Table:
    """Interests of every user with any -> INTEREST_SCHEMA, users in their order, strongest interest first.

    `naming` is of the same vocabulary and `is_known_I` (derive.is_known_vector) of the same vectors; made here if none
    is given, which reads the whole catalogue.
    """
    found = find_interests(timelines, vectors_ID, vocabulary, as_of_us=as_of_us, config=config, is_known_I=is_known_I)
    return interest_table(found, timelines, vocabulary, naming or Naming.of(vocabulary, as_of_us=as_of_us))


def interest_table(found: FoundInterests, timelines: Timelines, vocabulary: Vocabulary, naming: Naming) -> pa.Table:
    """What was found of these users, with names -> INTEREST_SCHEMA."""
    kept, users_C, medoids_C = found.kept, found.users, found.medoids
    clusters_P, items_P = _renumbered(found.clusters_P, found.items_P, kept)
    medoids = vocabulary.items.select([Col.ITEM_ID, Col.TITLE]).take(pa.array(medoids_C))
    columns: dict[str, pa.Array | pa.ChunkedArray] = {
        "user_id": timelines.user_ids.take(pa.array(users_C)),
        "rank": pa.array(found.ranks, pa.int16()),
        "name": naming.names(clusters_P, items_P, medoids_C, users_C),
        "medoid_item_id": medoids.column(Col.ITEM_ID),
        "title": medoids.column(Col.TITLE),
        "category": naming.categories(clusters_P, items_P, medoids_C),
        "recent_days": pa.array(np.full(len(kept), found.half_life_days), pa.float32()),
        "medoid_index": pa.array(medoids_C, pa.int32()),
        **_evidence_columns(found.evidence, users_C, kept),
    }
    return pa.Table.from_arrays([columns[name] for name in INTEREST_SCHEMA.names], schema=INTEREST_SCHEMA)


def find_interests(
    timelines: Timelines,
    vectors_ID: NDArray[np.float32],
    vocabulary: Vocabulary,
    *,
    as_of_us: int,
    config: InterestsConfig,
    is_known_I: NDArray[np.bool_] | None = None,
    clusters_P: NDArray[np.int64] | None = None,
) -> FoundInterests:
    """Interests of every user with any, without their names: what is known of them by number.

    `clusters_P`: those of the same users at the same moment, found with a configuration that clusters alike
    (`clusters_alike`): most of the work, and no half-life changes them.
    """
    config = derive_config(config, vectors_ID, vocabulary, as_of_us=as_of_us)
    assert config.merge_distance is not None
    assert config.half_life_days is not None
    is_known_I = is_known_vector(vectors_ID) if is_known_I is None else is_known_I
    pairs = _pairs(timelines, is_known_I, vocabulary, as_of_us, config.max_events, config.half_life_days)
    if clusters_P is None:
        clusters_P = ward_clusters(pairs.users, pairs.items, vectors_ID, config.merge_distance)
    medoids_C = _medoids(clusters_P, pairs, vectors_ID)
    users_C = pairs.users[np.unique(clusters_P, return_index=True)[1]]
    evidence = _evidence(clusters_P, users_C, pairs, as_of_us, config.half_life_days)
    kept, ranks = _strongest(users_C, evidence.weights, medoids_C, config.max_interests)
    return FoundInterests(
        users=users_C[kept],
        ranks=ranks,
        medoids=medoids_C[kept],
        kept=kept,
        evidence=evidence,
        clusters_P=clusters_P,
        items_P=pairs.items,
        half_life_days=config.half_life_days,
    )


def clusters_alike(one: InterestsConfig, other: InterestsConfig) -> bool:
    """Whether two configurations, with nothing left open, find the same clusters of items and differ in evidence."""
    return (one.merge_distance, one.max_events) == (other.merge_distance, other.max_events)


def _evidence_columns(
    evidence: Evidence, users_C: NDArray[np.int64], kept: NDArray[np.int64]
) -> dict[str, pa.Array | pa.ChunkedArray]:
    """The columns that say what was seen of the kept clusters; `users_C` is theirs."""
    trends, weights_C = evidence.trends, evidence.weights[kept]
    totals_U = np.bincount(users_C, weights_C)
    weeks_C = np.maximum(evidence.age_days[kept], DAYS_PER_WEEK) / DAYS_PER_WEEK
    states = np.array(INTEREST_STATES, dtype=object)
    return {
        "weight": pa.array(weights_C / totals_U[users_C], pa.float32()),
        "num_events": pa.array(evidence.num_events[kept], pa.int32()),
        "events_per_week": pa.array(evidence.num_events[kept] / weeks_C, pa.float32()),
        "first_at": pa.array(evidence.first_us[kept]).cast(TIMESTAMP_TYPE),
        "last_at": pa.array(evidence.last_us[kept]).cast(TIMESTAMP_TYPE),
        "age_days": pa.array(evidence.age_days[kept], pa.float32()),
        "recency_days": pa.array(evidence.recency_days[kept], pa.float32()),
        "state": pa.array(states[trends.states[kept]], pa.string()),
        "num_recent": pa.array(evidence.num_recent[kept], pa.int32()),
        "recent_share": pa.array(trends.recent_shares[kept], pa.float32()),
        "earlier_share": pa.array(trends.earlier_shares[kept], pa.float32()),
    }


def _renumbered(
    clusters_P: NDArray[np.int64], items_P: NDArray[np.int64], kept: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Clusters and items of the pairs whose clusters are kept; a cluster is now its place among these."""
    place_C = np.full(int(clusters_P.max(initial=-1)) + 1, -1, dtype=np.int64)
    place_C[kept] = np.arange(len(kept))
    place_P = place_C[clusters_P]
    return place_P[place_P >= 0], items_P[place_P >= 0]


def _pairs(
    timelines: Timelines,
    is_known_I: NDArray[np.bool_],
    vocabulary: Vocabulary,
    as_of_us: int,
    max_events: int,
    half_life_days: float,
) -> _Pairs:
    """Wanted events before `as_of`, and the distinct items of each user's newest `max_events` of them."""
    history = timelines.before(as_of_us)
    has_vector_N = (history.items >= 0) & is_known_I.take(history.items, mode="clip")
    history = history.keep((vocabulary.weight_of(history.actions) > 0) & has_vector_N)
    num_items = len(is_known_I)
    keys, pair_N = np.unique(history.user_rows * num_items + history.items, return_inverse=True)
    is_clustered = np.zeros(len(keys), dtype=np.bool_)
    is_clustered[pair_N[history.ages < max_events]] = True
    is_evidence = is_clustered[pair_N]
    renumbered = np.cumsum(is_clustered) - 1

    newest_U = np.full(timelines.num_users, as_of_us, dtype=np.int64)
    newest_U[history.lengths > 0] = history.times_us[history.offsets[1:][history.lengths > 0] - 1]
    # Only ratios within a user matter: measured from its newest event, no weight of a long-gone user underflows.
    half_lives = (newest_U[history.user_rows] - history.times_us) / (half_life_days * MICROSECONDS_PER_DAY)
    weights = vocabulary.weight_of(history.actions).astype(np.float64) * np.exp2(-half_lives)
    return _Pairs(
        users=keys[is_clustered] // num_items,
        items=keys[is_clustered] % num_items,
        event_pairs=renumbered[pair_N[is_evidence]],
        event_times_us=history.times_us[is_evidence],
        event_weights=weights[is_evidence],
    )


def _medoids(clusters_P: NDArray[np.int64], pairs: _Pairs, vectors_ID: NDArray[np.float32]) -> NDArray[np.int64]:
    """Item [C] with the least squared distance to its cluster; of equals (any two items are) the heavier one."""
    items_P = pairs.items
    weights_P = np.bincount(pairs.event_pairs, pairs.event_weights, minlength=len(items_P))
    order = np.argsort(clusters_P, kind="stable")
    starts = np.flatnonzero(np.diff(clusters_P[order], prepend=-1))
    sizes_C = np.diff(np.append(starts, len(order)))
    rows = np.repeat(np.arange(len(starts)), sizes_C)
    cost = np.zeros(len(order), dtype=np.float32)
    block_C = starts // PAIRS_AT_ONCE
    for first in np.flatnonzero(np.diff(block_C, prepend=-1)):
        last = np.searchsorted(block_C, block_C[first], side="right") - 1
        here = slice(starts[first], starts[last] + sizes_C[last])
        x_PD = vectors_ID[items_P[order[here]]]
        sums_CD = np.add.reduceat(x_PD, starts[first : last + 1] - starts[first], axis=0)
        # sum_j |x - x_j|^2 = n |x|^2 - 2 x . sum_j x_j + constant
        squares, products = (np.einsum("pd,pd->p", x_PD, y_PD) for y_PD in (x_PD, sums_CD[rows[here] - first]))
        cost[here] = sizes_C[rows[here]] * squares - 2 * products
    # Rounded, because mathematical ties differ by rounding.
    best = np.lexsort((items_P[order], -weights_P[order], np.round(cost, 4), rows))
    return items_P[order][best[starts]]


def _evidence(
    clusters_P: NDArray[np.int64], users_C: NDArray[np.int64], pairs: _Pairs, as_of_us: int, half_life_days: float
) -> Evidence:
    """What the events say about each cluster."""
    clusters_E, times_us = clusters_P[pairs.event_pairs], pairs.event_times_us
    size = len(users_C)
    first_us = np.full(size, as_of_us, dtype=np.int64)
    last_us = np.full(size, np.iinfo(np.int64).min)
    np.minimum.at(first_us, clusters_E, times_us)
    np.maximum.at(last_us, clusters_E, times_us)
    num_events = np.bincount(clusters_E, minlength=size)
    is_recent = times_us >= as_of_us - half_life_days * MICROSECONDS_PER_DAY
    num_recent = np.bincount(clusters_E[is_recent], minlength=size)
    age_days = (as_of_us - first_us) / MICROSECONDS_PER_DAY
    recency_days = (as_of_us - last_us) / MICROSECONDS_PER_DAY
    trends = interest_trends(users_C, num_events, num_recent, age_days, recency_days, half_life_days=half_life_days)
    weights = np.bincount(clusters_E, pairs.event_weights, minlength=size).astype(np.float64)
    return Evidence(weights, num_events, first_us, last_us, num_recent, age_days, recency_days, trends)


def _strongest(
    users_C: NDArray[np.int64], weights_C: NDArray[np.float64], medoids_C: NDArray[np.int64], max_interests: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Clusters to keep, by user, then falling weight, and their ranks from 1."""
    order = np.lexsort((medoids_C, -weights_C, users_C))
    users = users_C[order]
    starts = np.flatnonzero(np.diff(users, prepend=-1))
    ranks = np.arange(len(users)) - np.repeat(starts, np.diff(np.append(starts, len(users)))) + 1
    is_kept = ranks <= max_interests
    return order[is_kept], ranks[is_kept]
