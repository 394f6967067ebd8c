"""Cluster 7 stays cluster 7: match the clusters of a retrain to those of its parent through the users of both.

Vectors of two trainings do not live in one space, so centroids cannot be compared; the users whom both releases put
into a cluster can. Clusters are paired one to one so that as many common users as possible keep their id (Hungarian
method). A pair stands only if it is more alike than different enough to be called the same: of the users in either of
the two at least LEAST_OVERLAP are in both (Jaccard). A new cluster without such a partner gets an id that no release
of the line has used: the next free one travels in the release.

share_moved is the share of common users whose id changed: by the retrain, and by what they did since the parent.
Shapes: K clusters of the retrain, P of the parent.
Limits: without common users everything is new, and the agreement is None.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

LEAST_OVERLAP = 0.2
FIRST_ID = 1


@dataclass(frozen=True)
class Matching:
    """Ids of the clusters of a retrain, and how much it agrees with its parent."""

    ids: tuple[int, ...]  # [K]
    next_id: int  # that no cluster of this line of releases has had
    common_users: int = 0  # in a cluster of both; a sample where there are many
    ari: float | None = None  # adjusted Rand index over the common users
    share_moved: float | None = None
    dropped: tuple[int, ...] = ()  # ids of the parent that no cluster has any more

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def contingency(
    rows_U: NDArray[np.integer[Any]], columns_U: NDArray[np.integer[Any]], shape: tuple[int, int]
) -> NDArray[np.int64]:
    """Users in each pair of clusters -> [K, P]; who is in none of either (negative) is left out."""
    both_U = (rows_U >= 0) & (columns_U >= 0)
    pairs = rows_U[both_U].astype(np.int64) * shape[1] + columns_U[both_U]
    return np.bincount(pairs, minlength=shape[0] * shape[1]).reshape(shape)


def adjusted_rand_index(users_KP: NDArray[np.int64]) -> float:
    """Agreement of two partitions from their contingency: 1 is the same, 0 what chance gives (Hubert & Arabie 1985)."""
    total = _pairs(np.array([users_KP.sum()]))
    together, own, other = _pairs(users_KP), _pairs(users_KP.sum(axis=1)), _pairs(users_KP.sum(axis=0))
    by_chance = own * other / total if total else 0.0
    most = (own + other) / 2
    return (together - by_chance) / (most - by_chance) if most != by_chance else 1.0


def first_ids(num_clusters: int, *, next_id: int = FIRST_ID, dropped: Sequence[int] = ()) -> Matching:
    """Ids of clusters that have nothing in common with a parent, in their order."""
    ids = tuple(range(next_id, next_id + num_clusters))
    return Matching(ids, next_id + num_clusters, dropped=tuple(dropped))


def match_clusters(users_KP: NDArray[np.int64], parent_ids: Sequence[int], *, next_id: int) -> Matching:
    """Ids of the K clusters from the common users in each pair; `next_id` is the parent's."""
    if not users_KP.sum():
        return first_ids(len(users_KP), next_id=next_id, dropped=parent_ids)
    either_KP = users_KP.sum(axis=1, keepdims=True) + users_KP.sum(axis=0, keepdims=True) - users_KP
    kept: dict[int, int] = {}
    pairs = np.stack(linear_sum_assignment(users_KP, maximize=True), axis=1)
    for pair in pairs.tolist():
        row, column = int(pair[0]), int(pair[1])
        if users_KP[row, column] and users_KP[row, column] >= LEAST_OVERLAP * either_KP[row, column]:
            kept[row] = column
    ids = []
    for row in range(len(users_KP)):
        if row in kept:
            ids.append(int(parent_ids[kept[row]]))
        else:
            ids.append(next_id)
            next_id += 1
    common = int(users_KP.sum())
    stayed = sum(int(users_KP[row, column]) for row, column in kept.items())
    dropped = tuple(int(parent_id) for parent_id in parent_ids if parent_id not in ids)
    return Matching(tuple(ids), next_id, common, adjusted_rand_index(users_KP), 1 - stayed / common, dropped)


def _pairs(counts: NDArray[np.int64]) -> float:
    exact = counts.astype(np.float64)
    return float((exact * (exact - 1) / 2).sum())
