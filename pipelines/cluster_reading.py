"""What the clusters of a build start from, are compared with and described by: samples and the parent's clusters.

Vectors of a sample of whole buckets decide the number, and where fresh clusters start. Users of two releases meet by
id, since snapshots may have different numbers of buckets. Of more than MATCH_USERS users a sample by digest is read,
bucket file by bucket file, so memory is that of the sample.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import polars as pl
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipelines.bucket_tasks import bucket_numbers, part_file
from pipelines.embed import vectors_of
from pipelines.segment import SAMPLE_USERS
from sonder.core.ids import unit_interval
from sonder.core.storage import Folder, read_manifest
from sonder.core.workspace import Workspace
from sonder.history.bucket_sample import buckets_reaching
from sonder.history.snapshot import read_timelines
from sonder.history.vocabulary import Vocabulary
from sonder.segments.cluster_matching import FIRST_ID
from sonder.segments.cluster_names import ClusterName, lifts_of, name_clusters, portrait_lifts
from sonder.segments.cluster_start import mean_directions, user_sums
from sonder.segments.cluster_traits import Trait, trait_shares
from sonder.segments.clusters import CLUSTERS_FILE, NO_CLUSTER, assign, with_vector

MATCH_USERS = 500_000
SAMPLE_VECTORS = 100_000
_BATCH = 1 << 16
MATCH_KEY = "sonder/clusters/match/1/"


@dataclass(frozen=True)
class ParentClusters:
    """The clusters of the release that a build follows; none if there is no such release, or it has none."""

    folder: Folder | None = None
    ids: tuple[int, ...] = ()
    names: Mapping[int, ClusterName] = field(default_factory=dict)
    next_id: int = FIRST_ID

    @property
    def has_clusters(self) -> bool:
        return bool(self.ids)


def read_sample_vectors(vectors: Folder, history: Folder) -> tuple[NDArray[np.float32], bool]:
    """Vectors of SAMPLE_VECTORS users of the first buckets who have one, and whether that is everybody."""
    chosen = buckets_reaching(history, SAMPLE_VECTORS)
    users = sum(int(entry["users"]) for entry in read_manifest(history)["buckets"])
    parts = [with_vector(block) for bucket in chosen for block in vector_blocks(part_file(vectors, bucket))]
    sample_SD = np.concatenate(parts) if parts else np.empty((0, 1), np.float32)
    return sample_SD[:SAMPLE_VECTORS], users <= SAMPLE_VECTORS


def vector_blocks(file: Folder) -> Iterator[NDArray[np.float32]]:
    """Vectors of a bucket file in slices, so that memory does not grow with the bucket."""
    with file.open() as opened:
        for batch in pq.ParquetFile(opened).iter_batches(_BATCH, columns=["vector"]):
            yield vectors_of(batch.column(0))


def parent_of(workspace: Workspace, parent: str | None) -> ParentClusters:
    """The clusters of a release by its id."""
    if parent is None or not (workspace.release(parent) / "clusters" / CLUSTERS_FILE).exists():
        return ParentClusters()
    folder = workspace.release(parent) / "clusters"
    content = (folder / CLUSTERS_FILE).read_json()
    names = {
        entry["id"]: ClusterName(entry["name"], tuple(Trait(*part) for part in entry["name_parts"]))
        for entry in content["clusters"]
    }
    return ParentClusters(folder, tuple(names), names, content["next_id"])


def rows_of_both(
    vectors: Folder, history: Folder, centroids_KD: NDArray[np.float32], parent: ParentClusters
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Row of the new and of the parent's cluster of the common users in a cluster of both [U], or of a sample."""
    pairs = [
        (assign(vectors_UD, centroids_KD).rows.astype(np.int64), columns_U)
        for vectors_UD, columns_U in _common_users(vectors, history, parent)
    ]
    rows_U = np.concatenate([np.empty(0, np.int64), *(rows for rows, _ in pairs)])
    columns_U = np.concatenate([np.empty(0, np.int64), *(columns for _, columns in pairs)])
    return rows_U[rows_U != NO_CLUSTER], columns_U[rows_U != NO_CLUSTER]


def parent_means(vectors: Folder, history: Folder, parent: ParentClusters) -> NDArray[np.float32]:
    """Where the parent's clusters lie now: mean direction of the new vectors of their users, of each that has any."""
    sums_PD = np.zeros((len(parent.ids), 1))
    for vectors_UD, columns_U in _common_users(vectors, history, parent):
        sums_PD = sums_PD + user_sums(vectors_UD, columns_U, len(parent.ids))
    return mean_directions(sums_PD)


def _common_users(
    vectors: Folder, history: Folder, parent: ParentClusters
) -> Iterator[tuple[NDArray[np.float32], NDArray[np.int64]]]:
    """New vectors of the users in a cluster of the parent, and which of its clusters, bucket by bucket."""
    assert parent.folder is not None
    users = sum(int(entry["users"]) for entry in read_manifest(history)["buckets"])
    share = min(1.0, MATCH_USERS / max(users, 1))
    files = [parent.folder / name for name in parent.folder.files() if name.endswith(".parquet")]
    before = [_drawn(pl.DataFrame(file.read_table(["user_id", "cluster_id"])), share) for file in files]
    column_of = pl.DataFrame({"cluster_id": parent.ids, "column": range(len(parent.ids))}).cast(pl.Int16)
    if not before:
        return
    old = pl.concat(before).join(column_of, on="cluster_id")
    for bucket in bucket_numbers(history):
        drawn = _drawn(pl.DataFrame(part_file(vectors, bucket).read_table()), share)
        both = drawn.join(old, on="user_id", maintain_order="left")
        if both.height:
            yield vectors_of(both["vector"].to_arrow()), both["column"].cast(pl.Int64).to_numpy()


def read_portraits(
    history: Folder,
    items: Folder,
    target: Folder,
    ids: tuple[int, ...],
    inherited: Mapping[int, ClusterName],
    *,
    as_of_us: int,
) -> list[dict[str, Any]]:
    """`name`, `name_parts` and `lifts` of each cluster [K], from SAMPLE_USERS users at least, in whole buckets."""
    vocabulary, buckets = Vocabulary.load(items), buckets_reaching(history, SAMPLE_USERS)
    timelines = read_timelines(history, vocabulary, buckets).before(as_of_us)
    users = pl.DataFrame({"user_id": pl.Series(timelines.user_ids.to_pylist(), dtype=pl.String)})
    for part, column in (("clusters", "cluster_id"), ("segments", "lifecycle")):
        frames = [pl.DataFrame(part_file(target / part, bucket).read_table(["user_id", column])) for bucket in buckets]
        users = users.join(pl.concat(frames), on="user_id", how="left", maintain_order="left")
    row_of = {cluster_id: row for row, cluster_id in enumerate(ids)}
    rows_U = users["cluster_id"].replace_strict(row_of, default=NO_CLUSTER, return_dtype=pl.Int64).to_numpy()
    has_dates = not read_manifest(history)["is_ordinal"]
    traits, sums_KF, users_K = trait_shares(
        timelines, vocabulary, users["lifecycle"].fill_null("cold").to_list(), rows_U, len(ids), has_dates=has_dates
    )
    lifts_K = lifts_of(traits, sums_KF, users_K)
    names = name_clusters(lifts_K, ids, inherited)
    return [
        {
            "name": name.text,
            "name_parts": [list(part) for part in name.parts],
            "lifts": [lift.to_dict() for lift in portrait_lifts(lifts)],
        }
        for name, lifts in zip(names, lifts_K, strict=True)
    ]


def _drawn(frame: pl.DataFrame, share: float) -> pl.DataFrame:
    """The users with the lowest digests: the same ones in every release."""
    return frame if share >= 1 else frame.filter(unit_interval(frame["user_id"], MATCH_KEY) < share)
