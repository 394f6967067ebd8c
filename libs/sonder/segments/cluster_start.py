"""Where the clusters of a retrain start: at its parent's, unless fresh ones are clearly better.

k-means has many optima that are about as good, so a fresh start cuts the same users elsewhere. The parent's centroids
mean nothing in the new space, but its users do: each cluster starts at the mean direction of the new vectors of those
who were in it. That is one step of k-means from the parent's own partition, and every further step moves users for
little gain. So no more are taken than bring the inertia within WORSE of a fresh start's on the same sample; if the
parent's clusters settle before that, the fresh start is taken. A cluster whose users are gone is dropped, and the
number of clusters is then smaller by it (`sonder.segments.stability.number_after` decides whether that still holds).

Shapes: S users of a sample, K clusters, P of the parent, D width.
Source: Ben-David, von Luxburg & Pal 2006 (equally good cuts make k-means unstable); the parent's
means cost 1.2 to 2.5 % in measured retrains of synthetic worlds (benchmarks/clusters_2026-11-23.md).
Limits: there one cluster of 24 is worth about half of WORSE, so a small group that appeared since the parent may wait
for its own cluster until the number changes; a given number (`segments.num_clusters`) other than the parent's does it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sonder.segments.clusters import (
    MAX_STEPS,
    assign,
    block_statistics,
    fit_sample,
    has_settled,
    moved_centroids,
    unit_rows,
    with_vector,
)

PARENT, FRESH = "parent", "fresh"
KEPT, NO_PARENT, NUMBER_CHANGED, FITS_WORSE = "kept", "no_parent", "number_changed", "parent_fits_worse"
WORSE = 0.02  # share of the fresh start's inertia


@dataclass(frozen=True)
class Start:
    """Centroids to start from, and why these."""

    centroids_KD: NDArray[np.float32]
    clusters_started_from: str  # PARENT or FRESH
    reason: str  # KEPT, NO_PARENT, NUMBER_CHANGED or FITS_WORSE
    excess_inertia: float | None = None  # share by which the parent's are worse than fresh ones; None if not compared
    steps: int = 0  # from the means of the parent's users

    def to_dict(self) -> dict[str, Any]:
        """Everything but the centroids."""
        return {name: value for name, value in vars(self).items() if name != "centroids_KD"}


def user_sums(
    vectors_UD: NDArray[np.float32], columns_U: NDArray[np.integer[Any]], num_parent: int
) -> NDArray[np.float64]:
    """Sum of the new unit vectors of the users of each parent cluster -> [P, D]; add those of all blocks.

    `columns_U`: the user's cluster in the parent, 0 to num_parent - 1.
    """
    sums_PD = np.zeros((num_parent, vectors_UD.shape[1]))
    np.add.at(sums_PD, columns_U, unit_rows(vectors_UD))
    return sums_PD


def mean_directions(sums_PD: NDArray[np.float64]) -> NDArray[np.float32]:
    """Unit centroid of each parent cluster that still has users, in the parent's order -> [K, D]."""
    return unit_rows(sums_PD[sums_PD.any(axis=1)].astype(np.float32)).astype(np.float32)


def choose_start(
    sample_SD: NDArray[np.float32], num_clusters: int, parent_KD: NDArray[np.float32] | None, *, seed: int
) -> Start:
    """The parent's clusters or fresh ones; `parent_KD` is None, or empty, where no parent's users are here."""
    fresh_KD = fresh_centroids(sample_SD, num_clusters, seed=seed)
    if parent_KD is None or not len(parent_KD):
        return Start(fresh_KD, FRESH, NO_PARENT)
    if len(parent_KD) != num_clusters:
        return Start(fresh_KD, FRESH, NUMBER_CHANGED)
    users_SD = with_vector(sample_SD)
    fresh = block_statistics(users_SD, fresh_KD).inertia
    inertias: list[float] = []
    excess = 0.0
    while len(inertias) < MAX_STEPS and not has_settled(inertias):
        found = block_statistics(users_SD, parent_KD)
        excess = found.inertia / fresh - 1 if fresh > 0 else 0.0
        if excess <= WORSE and found.counts_K.all():
            return Start(parent_KD, PARENT, KEPT, excess, len(inertias))
        parent_KD = moved_centroids(found, parent_KD)
        inertias.append(found.inertia)
    return Start(fresh_KD, FRESH, FITS_WORSE, excess, len(inertias))


def fresh_centroids(sample_SD: NDArray[np.float32], num_clusters: int, *, seed: int) -> NDArray[np.float32]:
    """Centroids fitted to the sample, that of the most users first."""
    if not num_clusters:
        return np.empty((0, sample_SD.shape[1]), np.float32)
    centroids_KD, _ = fit_sample(sample_SD, num_clusters, seed=seed)
    sizes_K = np.bincount(assign(with_vector(sample_SD), centroids_KD).rows, minlength=len(centroids_KD))
    return centroids_KD[np.argsort(-sizes_K, kind="stable")]
