"""What a start costs and saves across a retrain: share of users moved, inertia and truth of fresh and parent's starts.

    OMP_NUM_THREADS=1 python -m benchmarks.cluster_retrain PARENT CHILD [--truth FOLDER]

PARENT and CHILD are release folders of two trainings on the same log. Only their vectors are read: the parent's are
clustered into --clusters clusters from a fresh start, the child's by each start. Prints one JSON line a start: inertia
over that of the fresh start, agreement with the parent (adjusted Rand index and share moved, by
segments.cluster_matching), agreement with the heaviest true interest of the log's last 30 days, and the share of the
moved and of all users on a border (cosine lead over the second cluster below BORDER). `kept within` leaves who has lost
the parent's cluster by less than that where they were, to see what a memory would buy.
"""

from __future__ import annotations

import argparse
import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from sonder.core.storage import MANIFEST
from sonder.evaluation.truth import cluster_agreement, interests_between
from sonder.segments.cluster_matching import contingency, match_clusters
from sonder.segments.cluster_start import choose_start, fresh_centroids, mean_directions, user_sums
from sonder.segments.clusters import (
    assign,
    block_statistics,
    moved_centroids,
    unit_rows,
    with_vector,
)

PARENT_SEED, CHILD_SEED, NUM_CLUSTERS, BORDER, TRUTH_DAYS = 7, 8, 24, 0.1, 30
STEPS = (0, 1, 2, 5, 10, 50)
TOLERANCES = (0.02, 0.05, 0.1, 0.2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parent", type=Path)
    parser.add_argument("child", type=Path)
    parser.add_argument("--truth", type=Path, help="the truth folder of a synthetic world")
    parser.add_argument("--clusters", type=int, default=NUM_CLUSTERS)
    given = parser.parse_args()
    pair = Pair(given.parent, given.child, given.truth, given.clusters)
    print(json.dumps({"parent truth": pair.truth_of(pair.old_U)}))
    for seed in (CHILD_SEED, CHILD_SEED + 1):
        pair.show(f"fresh, seed {seed}", fresh_centroids(pair.new_UD, given.clusters, seed=seed))
    centroids_KD, users_UD = pair.means_KD, with_vector(pair.new_UD)
    for step in range(max(STEPS) + 1):
        if step in STEPS:
            pair.show(f"parent, {step} steps", centroids_KD)
        centroids_KD = moved_centroids(block_statistics(users_UD, centroids_KD), centroids_KD)
    start = choose_start(pair.new_UD, given.clusters, pair.means_KD, seed=CHILD_SEED)
    print(json.dumps({"chosen": start.to_dict()}))
    for tolerance in TOLERANCES:
        pair.show(f"chosen, kept within {tolerance}", start.centroids_KD, tolerance=tolerance)


class Pair:
    """The users of both releases, their clusters in the parent and their vectors in the child."""

    def __init__(self, parent: Path, child: Path, truth: Path | None, num_clusters: int) -> None:
        both = _vectors(parent).join(_vectors(child), on="user_id", suffix="_new").sort("user_id")
        self.user_ids = both["user_id"]
        old_UD, self.new_UD = (np.array(both[name].to_list(), np.float32) for name in ("vector", "vector_new"))
        self.num = num_clusters
        self.old_U = assign(old_UD, fresh_centroids(old_UD, num_clusters, seed=PARENT_SEED)).rows
        known = self.old_U >= 0
        self.means_KD = mean_directions(user_sums(self.new_UD[known], self.old_U[known], num_clusters))
        self.inertia = self.inertia_of(fresh_centroids(self.new_UD, num_clusters, seed=CHILD_SEED))
        self.held = None if truth is None else _held(truth, child)

    def inertia_of(self, centroids_KD: NDArray[np.float32]) -> float:
        return block_statistics(with_vector(self.new_UD), centroids_KD).inertia

    def truth_of(self, rows_U: NDArray[np.integer[Any]]) -> dict[str, float]:
        if self.held is None:
            return {}
        assigned = pl.DataFrame({"user_id": self.user_ids, "cluster_id": rows_U.astype(np.int64)})
        assigned = assigned.filter(pl.col("cluster_id") >= 0)
        return {
            "ari_department": round(cluster_agreement(assigned, self.held, depth=1), 3),
            "ari_leaf": round(cluster_agreement(assigned, self.held), 3),
        }

    def show(self, name: str, centroids_KD: NDArray[np.float32], *, tolerance: float | None = None) -> None:
        found = assign(self.new_UD, centroids_KD)
        shape = (len(centroids_KD), self.num)
        matching = match_clusters(contingency(found.rows, self.old_U, shape), range(self.num), next_id=self.num)
        rows_U = found.rows
        if tolerance is not None:
            rows_U = self._kept(found.rows, centroids_KD, matching.ids, tolerance)
            kept = match_clusters(contingency(rows_U, self.old_U, shape), range(self.num), next_id=self.num)
        else:
            kept = matching
        ids_U = np.array([*matching.ids, -1])[rows_U]
        common_U = (rows_U >= 0) & (self.old_U >= 0)
        moved_U = common_U & (ids_U != self.old_U)
        row = {
            "start": name,
            "inertia": round(self.inertia_of(centroids_KD) / self.inertia, 4),
            "ari_parent": round(kept.ari or 0.0, 3),
            "share_moved": round(float(moved_U.sum() / common_U.sum()), 3),
            "ids_kept": sum(cluster_id < self.num for cluster_id in matching.ids),
            "border_of_moved": round(float((found.margin[moved_U] < BORDER).mean()), 2) if moved_U.any() else None,
            "border_of_all": round(float((found.margin[common_U] < BORDER).mean()), 2),
        }
        print(json.dumps(row | self.truth_of(rows_U)))

    def _kept(
        self,
        rows_U: NDArray[np.integer[Any]],
        centroids_KD: NDArray[np.float32],
        ids: tuple[int, ...],
        tolerance: float,
    ) -> NDArray[np.int64]:
        """Rows where who is within `tolerance` of the best stays in the parent's cluster."""
        row_of = np.full(self.num + 1, -1)
        for row, cluster_id in enumerate(ids):
            if cluster_id < self.num:
                row_of[cluster_id] = row
        own_U = row_of[self.old_U]
        cosines_UK = unit_rows(self.new_UD) @ centroids_KD.astype(np.float64).T
        each = np.arange(len(own_U))
        is_near = (own_U >= 0) & (rows_U >= 0) & (cosines_UK[each, own_U] >= cosines_UK[each, rows_U] - tolerance)
        stays: NDArray[np.int64] = np.where(is_near, own_U, rows_U)
        return stays


def _vectors(release: Path) -> pl.DataFrame:
    return pl.read_parquet(release / "vectors" / "bucket=*" / "part-0.parquet", hive_partitioning=False)


def _held(truth: Path, release: Path) -> pl.DataFrame:
    as_of_us = json.loads((release / MANIFEST).read_text())["as_of_us"]
    end = pl.select(pl.lit(as_of_us).cast(pl.Datetime("us", "UTC"))).item()
    return interests_between(pl.read_parquet(truth / "interests.parquet"), end - timedelta(days=TRUTH_DAYS), end)


if __name__ == "__main__":
    main()
