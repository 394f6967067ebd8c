"""Cluster each user's recent items into interests: Ward clustering, a medoid as the face, decayed time as weight.

Shapes: U users, N events, P distinct (user, item) pairs, C clusters, I items, D embedding width.
Source: PinnerSage (Pal et al., KDD 2020, algorithms 1 and 2): no fixed number of clusters, merging ends at a distance;
the medoid is the item that minimises the squared distance to its cluster; weight is a sum over decayed events.

The items of a user's newest `max_events` wanted events are clustered. Evidence (weight, counts, first, last, state) is
every wanted event of the whole history on these items, so that a busy week does not make an old interest look new.
Weight is the sum of `action weight * 2^(-age / half-life)`, 1 in all over the interests that are kept.
A wanted event has an action of positive weight on an item with a vector. Events at `as_of` or later do not exist here.
Limits: a distance matrix per user, so memory and time grow with the square of its distinct items (`max_events`).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from scipy.cluster.hierarchy import linkage
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from sonder.core.config import InterestsConfig
from sonder.events.contract import TIMESTAMP_TYPE, Col
from sonder.history.timelines import MICROSECONDS_PER_DAY, Timelines
from sonder.history.vocabulary import Vocabulary
from sonder.interests.derive import derive_config, is_known_vector
from sonder.interests.states import INTEREST_STATES, interest_states

INTEREST_SCHEMA = pa.schema(
    [
        pa.field("user_id", pa.string(), nullable=False),
        pa.field("rank", pa.int16(), nullable=False),  # 1 is the strongest
        pa.field("medoid_item_id", pa.string(), nullable=False),
        pa.field("title", pa.string()),  # of the medoid
        pa.field("category", pa.string()),  # the most common one of the cluster's items
        pa.field("weight", pa.float32(), nullable=False),  # sum 1 per user
        pa.field("num_events", pa.int32(), nullable=False),
        pa.field("first_at", TIMESTAMP_TYPE, nullable=False),
        pa.field("last_at", TIMESTAMP_TYPE, nullable=False),
        pa.field("age_days", pa.float32(), nullable=False),  # since the first event
        pa.field("recency_days", pa.float32(), nullable=False),  # since the last one
        pa.field("state", pa.string(), nullable=False),
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
class _Evidence:
    """Per cluster, from all wanted events on its items; arrays of [C]."""

    weights: NDArray[np.float64]
    num_events: NDArray[np.int64]
    first_us: NDArray[np.int64]
    last_us: NDArray[np.int64]
    states: NDArray[np.int8]


def cluster_interests(
    timelines: Timelines,
    vectors_ID: NDArray[np.float32],
    vocabulary: Vocabulary,
    *,
    as_of_us: int,
    config: InterestsConfig,
) -> pa.Table:
    """Interests of every user with any -> INTEREST_SCHEMA, users in their order, strongest interest first."""
    config = derive_config(config, vectors_ID, vocabulary, as_of_us=as_of_us)
    assert config.merge_distance is not None
    assert config.half_life_days is not None
    pairs = _pairs(timelines, vectors_ID, vocabulary, as_of_us, config.max_events, config.half_life_days)
    clusters_P = _ward_clusters(pairs, vectors_ID, config.merge_distance)
    medoids_C = _medoids(clusters_P, pairs, vectors_ID)
    users_C = pairs.users[np.unique(clusters_P, return_index=True)[1]]
    evidence = _evidence(clusters_P, users_C, pairs, as_of_us, config.half_life_days)
    kept, ranks = _strongest(users_C, evidence.weights, medoids_C, config.max_interests)
    totals_U = np.bincount(users_C[kept], evidence.weights[kept], minlength=timelines.num_users)
    categories = _categories(clusters_P, pairs.items, medoids_C, vocabulary)
    medoids = vocabulary.items.take(pa.array(medoids_C[kept]))
    return pa.Table.from_arrays(
        [
            timelines.user_ids.take(pa.array(users_C[kept])),
            pa.array(ranks, pa.int16()),
            medoids.column(Col.ITEM_ID),
            medoids.column(Col.TITLE),
            categories.take(pa.array(kept)),
            pa.array(evidence.weights[kept] / totals_U[users_C[kept]], pa.float32()),
            pa.array(evidence.num_events[kept], pa.int32()),
            pa.array(evidence.first_us[kept]).cast(TIMESTAMP_TYPE),
            pa.array(evidence.last_us[kept]).cast(TIMESTAMP_TYPE),
            pa.array((as_of_us - evidence.first_us[kept]) / MICROSECONDS_PER_DAY, pa.float32()),
            pa.array((as_of_us - evidence.last_us[kept]) / MICROSECONDS_PER_DAY, pa.float32()),
            pa.array(np.array(INTEREST_STATES, dtype=object)[evidence.states[kept]], pa.string()),
            pa.array(medoids_C[kept], pa.int32()),
        ],
        schema=INTEREST_SCHEMA,
    )


def _pairs(
    timelines: Timelines,
    vectors_ID: NDArray[np.float32],
    vocabulary: Vocabulary,
    as_of_us: int,
    max_events: int,
    half_life_days: float,
) -> _Pairs:
    """Wanted events before `as_of`, and the distinct items of each user's newest `max_events` of them."""
    history = timelines.before(as_of_us)
    has_vector = np.append(is_known_vector(vectors_ID), False)  # index -1, an unknown item, reads the last
    history = history.keep((vocabulary.weight_of(history.actions) > 0) & has_vector[history.items])
    num_items = len(vectors_ID)
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


def _ward_clusters(pairs: _Pairs, vectors_ID: NDArray[np.float32], merge_distance: float) -> NDArray[np.int64]:
    """Cluster of each pair [P], numbered through all users: one linkage a user, one cut through all the trees.

    Ward's heights never fall towards the root, so a cut keeps the merges below it: the clusters are the connected
    components of one graph over all users' leaves and kept merges. (fcluster spends 5 times its work on checks.)
    """
    num_pairs = len(pairs.users)
    bounds = np.append(np.flatnonzero(np.diff(pairs.users, prepend=-1)), num_pairs)
    parents, children = [], []
    next_merge = num_pairs
    for start, end in pairwise(bounds.tolist()):
        size = end - start
        if size > 1:
            tree = linkage(_distances(vectors_ID[pairs.items[start:end]]), "ward")
            nodes = tree[tree[:, 2] <= merge_distance, :2].astype(np.int64)
            children.append(np.where(nodes < size, nodes + start, nodes - size + next_merge))
            parents.append(np.arange(next_merge, next_merge + len(nodes)))
            next_merge += len(nodes)
    if not parents:
        return np.arange(num_pairs)
    parent, child = np.concatenate(parents), np.concatenate(children)
    edges = (np.ones(2 * len(parent), np.int8), (np.tile(parent, 2), child.T.ravel()))
    labels = connected_components(coo_array(edges, shape=(next_merge, next_merge)), directed=False)[1]
    return np.unique(labels[:num_pairs], return_inverse=True)[1]


def _distances(x_nD: NDArray[np.float32]) -> NDArray[np.float64]:
    """Euclidean distances of all pairs in scipy's condensed order; by the Gram matrix, twice as fast as pdist."""
    gram = (x_nD @ x_nD.T).astype(np.float64)
    squares = np.diagonal(gram)
    left, right = _upper_triangle(len(x_nD))
    return np.sqrt(np.maximum(squares[left] + squares[right] - 2 * gram[left, right], 0.0))


@lru_cache(maxsize=256)
def _upper_triangle(size: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    return np.triu_indices(size, 1)


def _medoids(clusters_P: NDArray[np.int64], pairs: _Pairs, vectors_ID: NDArray[np.float32]) -> NDArray[np.int64]:
    """Item [C] with the least squared distance to its cluster; of equals (any two items are) the heavier one."""
    items_P = pairs.items
    weights_P = np.bincount(pairs.event_pairs, pairs.event_weights, minlength=len(items_P))
    order = np.argsort(clusters_P, kind="stable")
    x_PD = vectors_ID[items_P[order]]
    starts = np.flatnonzero(np.diff(clusters_P[order], prepend=-1))
    if not len(starts):
        return np.zeros(0, dtype=np.int64)
    sums_CD = np.add.reduceat(x_PD, starts, axis=0)
    sizes_C = np.diff(np.append(starts, len(order)))
    rows = np.repeat(np.arange(len(starts)), sizes_C)
    # sum_j |x - x_j|^2 = n |x|^2 - 2 x . sum_j x_j + constant; rounded, because mathematical ties differ by rounding
    cost = sizes_C[rows] * np.einsum("pd,pd->p", x_PD, x_PD) - 2 * np.einsum("pd,pd->p", x_PD, sums_CD[rows])
    best = np.lexsort((items_P[order], -weights_P[order], np.round(cost, 4), rows))
    return items_P[order][best[starts]]


def _evidence(
    clusters_P: NDArray[np.int64], users_C: NDArray[np.int64], pairs: _Pairs, as_of_us: int, half_life_days: float
) -> _Evidence:
    """What the events say about each cluster."""
    clusters_E, times_us = clusters_P[pairs.event_pairs], pairs.event_times_us
    size = len(users_C)
    first_us = np.full(size, as_of_us, dtype=np.int64)
    last_us = np.full(size, np.iinfo(np.int64).min)
    np.minimum.at(first_us, clusters_E, times_us)
    np.maximum.at(last_us, clusters_E, times_us)
    num_events = np.bincount(clusters_E, minlength=size)
    is_recent = times_us >= as_of_us - half_life_days * MICROSECONDS_PER_DAY
    states = interest_states(
        users_C,
        num_events,
        np.bincount(clusters_E[is_recent], minlength=size),
        (as_of_us - first_us) / MICROSECONDS_PER_DAY,
        (as_of_us - last_us) / MICROSECONDS_PER_DAY,
        half_life_days=half_life_days,
    )
    weights = np.bincount(clusters_E, pairs.event_weights, minlength=size).astype(np.float64)
    return _Evidence(weights, num_events, first_us, last_us, states)


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


def _categories(
    clusters_P: NDArray[np.int64], items_P: NDArray[np.int64], medoids_C: NDArray[np.int64], vocabulary: Vocabulary
) -> pa.Array:
    """The most common category of each cluster [C]; of equals the medoid's, else the first by name."""
    column = vocabulary.items.column(Col.CATEGORY).combine_chunks()
    coded = column.take(pa.array(np.concatenate([items_P, medoids_C]))).cast(pa.string()).dictionary_encode()
    codes = coded.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
    codes_P, medoid_codes_C = codes[: len(items_P)], codes[len(items_P) :]
    by_name = np.argsort(np.argsort(np.array(coded.dictionary.to_pylist(), dtype=object))) if len(codes) else codes
    known = codes_P >= 0
    width = max(len(coded.dictionary), 1)
    keys, counts = np.unique(clusters_P[known] * width + codes_P[known], return_counts=True)
    clusters, options = keys // width, keys % width
    order = np.lexsort((by_name[options], options != medoid_codes_C[clusters], -counts, clusters))
    chosen = np.full(len(medoids_C), -1, dtype=np.int64)
    firsts = np.flatnonzero(np.diff(clusters[order], prepend=-1))
    chosen[clusters[order][firsts]] = options[order][firsts]
    return coded.dictionary.take(pa.array(chosen, mask=chosen < 0))
