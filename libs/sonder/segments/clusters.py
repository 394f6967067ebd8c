"""Behaviour clusters: spherical k-means over the users' long-term vectors, by statistics that add up over blocks.

What is clustered is the unit vector alone. It already holds what was done, to what and in which order; lifecycle and
activity are segments of their own, and mixing them in would need weights that nothing measures. A cluster is a cone of
the space, so its name (segments.cluster_names) can be checked against behaviour that did not make it, and one vector
is all that the online path needs. Who has the zero vector is in no cluster.

A pass over any number of vectors: `block_statistics` of each block, `+` in a fixed order, `moved_centroids` of the sum.
Nothing but [K, D] numbers leaves a block, so 10 M vectors cost no more memory than one block. A cluster that nobody
joined starts again at the user who fits worst, the next one at the next worst.

Shapes: U users, B users of a block, S of a sample, K clusters, D width.
Source: Dhillon & Modha 2001 (spherical k-means), Arthur & Vassilvitskii 2007 with the greedy choice of scikit-learn.
Limits: inertia is the sum of 1 - cosine; local optima depend on the seeds, which a sample decides (`fit_sample`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from scipy.sparse import csr_array

from sonder.core.errors import ArtefactMismatch
from sonder.core.storage import Folder

CENTROIDS_FILE, CLUSTERS_FILE = "centroids.safetensors", "clusters.json"
NO_CLUSTER = -1
TOLERANCE = 1e-4  # a pass that lowers the inertia by less than this share of it is the last
MAX_STEPS = 50  # on a sample, in memory
SEEDING_USERS = 10_000  # restarts are compared on this many
_BLOCK = 1 << 16

CLUSTER_SCHEMA = pa.schema(
    [
        pa.field("user_id", pa.string(), nullable=False),
        pa.field("cluster_id", pa.int16()),  # null: no vector, or a release without clusters
        pa.field("similarity", pa.float32()),  # cosine with the own centroid
        pa.field("margin", pa.float32()),  # by how much that is more than with the second; null with one cluster
    ]
)


@dataclass(frozen=True)
class Clusters:
    """The clusters of a release: what batch and online assign with. No row: this release has none."""

    centroids_KD: NDArray[np.float32]  # unit rows
    ids: tuple[int, ...]  # [K] of each row; kept across retrains
    names: tuple[str, ...]  # [K]

    def save(self, folder: Folder) -> None:
        """Write the centroids; ids and names stand in CLUSTERS_FILE, which the caller writes with the rest."""
        # Imported here: what only assigns reads no file.
        from safetensors.numpy import save

        (folder / CENTROIDS_FILE).write_bytes(save({"centroids": np.ascontiguousarray(self.centroids_KD)}))

    @classmethod
    def load(cls, folder: Folder) -> Clusters:
        """Read CENTROIDS_FILE and CLUSTERS_FILE of a release; ArtefactMismatch if they disagree."""
        from safetensors.numpy import load

        centroids_KD = load((folder / CENTROIDS_FILE).read_bytes())["centroids"]
        entries = (folder / CLUSTERS_FILE).read_json()["clusters"]
        if len(entries) != len(centroids_KD):
            raise ArtefactMismatch(
                f"{folder} has {len(centroids_KD)} centroids and describes {len(entries)} clusters",
                expected="as many of one as of the other",
                do="Restore the release, or build it again.",
            )
        return cls(centroids_KD, tuple(entry["id"] for entry in entries), tuple(entry["name"] for entry in entries))

    @cached_property
    def name_of(self) -> dict[int, str]:
        return dict(zip(self.ids, self.names, strict=True))


@dataclass(frozen=True)
class Assigned:
    """Of each user [U]: row of the nearest centroid (NO_CLUSTER without a vector), cosine, lead over the second."""

    rows: NDArray[np.int16]
    similarity: NDArray[np.float64]  # NaN without a cluster
    margin: NDArray[np.float64]  # NaN without a second


@dataclass(frozen=True)
class BlockStatistics:
    """What a block of users says of the centroids it was held against; add those of all blocks."""

    sums_KD: NDArray[np.float64]
    counts_K: NDArray[np.int64]
    inertia: float
    far_FD: NDArray[np.float64]  # the worst fitted users, worst first, K at most
    far_distances_F: NDArray[np.float64]

    def __add__(self, other: BlockStatistics) -> BlockStatistics:
        far_FD = np.concatenate([self.far_FD, other.far_FD])
        distances_F = np.concatenate([self.far_distances_F, other.far_distances_F])
        worst = np.argsort(-distances_F, kind="stable")[: len(self.counts_K)]
        return BlockStatistics(
            self.sums_KD + other.sums_KD,
            self.counts_K + other.counts_K,
            self.inertia + other.inertia,
            far_FD[worst],
            distances_F[worst],
        )


def unit_rows(vectors_UD: NDArray[np.float32]) -> NDArray[np.float64]:
    """Rows of length 1; the zero vector stays zero."""
    exact_UD = vectors_UD.astype(np.float64)
    norms_U = np.linalg.norm(exact_UD, axis=1, keepdims=True)
    unit_UD: NDArray[np.float64] = np.divide(exact_UD, norms_U, out=np.zeros_like(exact_UD), where=norms_U > 0)
    return unit_UD


def with_vector(vectors_UD: NDArray[np.float32]) -> NDArray[np.float32]:
    """The rows that are not zero: the users who can be in a cluster."""
    return vectors_UD[vectors_UD.any(axis=1)]


def assign(vectors_UD: NDArray[np.float32], centroids_KD: NDArray[np.float32]) -> Assigned:
    """Nearest centroid of each user, the first of equals; the same in a batch of any size."""
    num_users, num_clusters = len(vectors_UD), len(centroids_KD)
    rows = np.full(num_users, NO_CLUSTER, np.int16)
    similarity, margin = np.full((2, num_users), np.nan)
    for start in range(0, num_users if num_clusters else 0, _BLOCK):
        block = slice(start, start + _BLOCK)
        unit_BD = unit_rows(vectors_UD[block])
        known_B = unit_BD.any(axis=1)
        cosines_BK = unit_BD @ centroids_KD.astype(np.float64).T
        nearest_B = cosines_BK.argmax(axis=1)
        best_B = cosines_BK[np.arange(len(unit_BD)), nearest_B]
        rows[block] = np.where(known_B, nearest_B, NO_CLUSTER)
        similarity[block] = np.where(known_B, best_B, np.nan)
        if num_clusters > 1:
            second_B = np.partition(cosines_BK, num_clusters - 2, axis=1)[:, num_clusters - 2]
            margin[block] = np.where(known_B, best_B - second_B, np.nan)
    return Assigned(rows, similarity, margin)


def cluster_table(user_ids: pa.Array, vectors_UD: NDArray[np.float32], clusters: Clusters) -> pa.Table:
    """CLUSTER_SCHEMA, one row per user in their order."""
    found = assign(vectors_UD, clusters.centroids_KD)
    ids = np.array([*clusters.ids, 0], np.int16)[found.rows]
    columns = [
        user_ids.cast(pa.string()),
        pa.array(ids, mask=found.rows == NO_CLUSTER),
        pa.array(found.similarity.astype(np.float32), from_pandas=True),
        pa.array(found.margin.astype(np.float32), from_pandas=True),
    ]
    return pa.Table.from_arrays(columns, schema=CLUSTER_SCHEMA)


def block_statistics(vectors_BD: NDArray[np.float32], centroids_KD: NDArray[np.float32]) -> BlockStatistics:
    """Hold a block against the centroids; users without a vector count for nothing."""
    unit_BD = with_vector(vectors_BD)
    unit_BD = unit_BD / np.linalg.norm(unit_BD, axis=1, keepdims=True)
    cosines_BK = unit_BD @ centroids_KD.T
    rows_B = cosines_BK.argmax(axis=1)
    distances_B = 1.0 - cosines_BK[np.arange(len(unit_BD)), rows_B].astype(np.float64)
    num, num_clusters = len(unit_BD), len(centroids_KD)
    members_KB = csr_array((np.ones(num), (rows_B, np.arange(num))), shape=(num_clusters, num))
    worst = np.argsort(-distances_B, kind="stable")[:num_clusters]
    return BlockStatistics(
        members_KB @ unit_BD.astype(np.float64),
        np.bincount(rows_B, minlength=num_clusters),
        float(distances_B.sum()),
        unit_BD[worst].astype(np.float64),
        distances_B[worst],
    )


def moved_centroids(statistics: BlockStatistics, centroids_KD: NDArray[np.float32]) -> NDArray[np.float32]:
    """The centroids after a pass: mean directions, and for each empty cluster the next of the worst fitted users."""
    moved_KD = statistics.sums_KD.copy()
    empty = np.flatnonzero(statistics.counts_K == 0)[: len(statistics.far_FD)]
    moved_KD[empty] = statistics.far_FD[: len(empty)]
    norms_K = np.linalg.norm(moved_KD, axis=1, keepdims=True)
    moved: NDArray[np.float64] = np.where(norms_K > 0, moved_KD / np.where(norms_K > 0, norms_K, 1.0), centroids_KD)
    return moved.astype(np.float32)


def has_settled(inertias: Sequence[float]) -> bool:
    """Whether the newest pass gained too little for another one."""
    return any(before - after <= TOLERANCE * before for before, after in pairwise(inertias[-2:]))


def seed_centroids(sample_SD: NDArray[np.float32], num_clusters: int, draw: np.random.Generator) -> NDArray[np.float32]:
    """k-means++ on users with vectors; each seed is the best of 2 + log(k) draws. Fewer than asked if users repeat."""
    unit_SD = (sample_SD / np.linalg.norm(sample_SD, axis=1, keepdims=True)).astype(np.float32)
    chosen = [int(draw.integers(len(unit_SD)))]
    distances_S = np.maximum(1.0 - unit_SD @ unit_SD[chosen[0]], 0.0).astype(np.float64)
    trials = 2 + int(np.log(num_clusters))
    while len(chosen) < num_clusters and distances_S.sum() > 1e-6 * len(unit_SD):
        mass_S = np.cumsum(distances_S)
        candidates = np.minimum(np.searchsorted(mass_S, draw.random(trials) * mass_S[-1]), len(unit_SD) - 1)
        reached_TS = np.minimum(np.maximum(1.0 - unit_SD[candidates] @ unit_SD.T, 0.0), distances_S)
        best = int(reached_TS.sum(axis=1).argmin())
        chosen.append(int(candidates[best]))
        distances_S = reached_TS[best]
    seeds_KD: NDArray[np.float32] = unit_SD[chosen]
    return seeds_KD


def fit_sample(
    sample_SD: NDArray[np.float32], num_clusters: int, *, seed: int, restarts: int = 4, max_steps: int = MAX_STEPS
) -> tuple[NDArray[np.float32], float]:
    """Cluster vectors that fit in memory -> centroids, inertia: the best start on a part, then all of them.

    ValueError if nobody has a vector. Fewer clusters come back if there are fewer different vectors.
    """
    sample_SD = with_vector(sample_SD)
    if not len(sample_SD):
        raise ValueError("no vector to cluster")
    part_SD = sample_SD[:SEEDING_USERS]
    starts = []
    for restart in range(restarts):
        seeds_KD = seed_centroids(part_SD, num_clusters, np.random.default_rng([seed, num_clusters, restart]))
        starts.append(_descend(part_SD, seeds_KD, max_steps))
    centroids_KD, inertia = min(starts, key=lambda start: start[1])
    if len(part_SD) < len(sample_SD):
        centroids_KD, inertia = _descend(sample_SD, centroids_KD, max_steps)
    return centroids_KD, inertia


def _descend(
    vectors_SD: NDArray[np.float32], centroids_KD: NDArray[np.float32], max_steps: int
) -> tuple[NDArray[np.float32], float]:
    """Lloyd's passes in memory until they settle; the inertia is that of the centroids returned, but for one step."""
    inertias: list[float] = []
    while len(inertias) < max_steps and not has_settled(inertias):
        statistics = block_statistics(vectors_SD, centroids_KD)
        centroids_KD = moved_centroids(statistics, centroids_KD)
        inertias.append(statistics.inertia)
    return centroids_KD, inertias[-1]
