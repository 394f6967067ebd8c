"""Behaviour clusters of every user: k-means over bucket files of vectors with Ray Data, named, matched to a parent.

A sample of whole buckets decides the number of clusters and where they start. With a parent that is where the users of
its clusters lie now, unless fresh ones are clearly better (segments.cluster_start); then they stay there. Fresh ones
are moved by passes: each bucket is held against the centroids by one task, what comes back are sums of [K, D]; vectors
are never collected. It ends when a pass gains too little, after MAX_PASSES at the latest; where the sample is everybody
no pass is needed.

Writes target/clusters/{centroids.safetensors, clusters.json} and bucket=NNN/part-0.parquet (CLUSTER_SCHEMA). What is
decided on the way (number, start, passes, ids) is kept in clusters/decided/ until the end, so a killed run goes on at
its pass and an assigned bucket is not done again.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import reduce
from operator import add
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pipelines.bucket_tasks import bucket_numbers, over_buckets, part_file
from pipelines.cluster_reading import (
    ParentClusters,
    parent_means,
    parent_of,
    read_portraits,
    read_sample_vectors,
    rows_of_both,
    vector_blocks,
)
from pipelines.embed import vectors_of
from sonder.core import telemetry
from sonder.core.config import SonderConfig
from sonder.core.storage import Folder
from sonder.core.workspace import Workspace
from sonder.segments.cluster_matching import Matching, contingency, first_ids, match_clusters
from sonder.segments.cluster_start import FRESH, choose_start
from sonder.segments.clusters import (
    CLUSTERS_FILE,
    BlockStatistics,
    Clusters,
    block_statistics,
    cluster_table,
    has_settled,
    moved_centroids,
)
from sonder.segments.lifecycle import STATES
from sonder.segments.stability import CANDIDATES, choose_num_clusters, number_after

logger = logging.getLogger("sonder")
CLUSTERS, VECTORS, DECIDED = "clusters", "vectors", "decided"
MAX_PASSES = 6
CONFIGURED = "configured"


def cluster_users(
    config: SonderConfig,
    snapshot: str,
    target: Folder,
    *,
    as_of_us: int,
    parent: str | None = None,
    num_workers: int | None = None,
) -> dict[str, Any]:
    """Cluster the users of target/vectors -> `metrics`, `stability`, `clusters`; `parent` is a release of the line."""
    workspace = Workspace.at(config.workspace)
    history, items = workspace.history(snapshot), workspace.items(snapshot)
    folder, buckets = target / CLUSTERS, bucket_numbers(history)
    with telemetry.stage("cluster", snapshot=snapshot) as counts:
        sample_SD, is_everybody = read_sample_vectors(target / VECTORS, history)
        of_parent = parent_of(workspace, parent)
        parent_KD = parent_means(target / VECTORS, history, of_parent) if of_parent.has_clusters else None
        choice = _decided(folder, "choice", lambda: _choose(sample_SD, config, parent_KD))
        start = _decided(folder, "start", lambda: _start(sample_SD, choice["num_clusters"], parent_KD, config.seed))
        centroids_KD = np.array(start.pop("centroids"), np.float32).reshape(-1, sample_SD.shape[1])
        passes: list[float] = []
        if len(centroids_KD) and not is_everybody and start["clusters_started_from"] == FRESH:
            centroids_KD, passes = lloyd_passes(target, centroids_KD, buckets, num_workers)
        matching = _decided(folder, "ids", lambda: _match(target, history, centroids_KD, of_parent).to_dict())
        unnamed = Clusters(centroids_KD, tuple(matching["ids"]), ("",) * len(centroids_KD))
        arguments = {"target": target.uri, "clusters": unnamed}
        assigned = over_buckets(AssignBucket, arguments, buckets, num_workers=num_workers)
        described = read_portraits(history, items, target, unnamed.ids, of_parent.names, as_of_us=as_of_us)
        entries = entries_of(unnamed.ids, described, assigned)
        content = {
            "clusters": entries,
            "num_clusters": len(entries),
            "users_without": sum(int(summary["without"]) for summary in assigned),
            "stability": choice,
            "start": start,
            "matching": {**matching, "parent": parent if of_parent.has_clusters else None},
            "next_id": matching["next_id"],
            "passes": passes,
        }
        unnamed.save(folder)
        (folder / CLUSTERS_FILE).write_json(content)
        (folder / DECIDED).remove()
        if matching["dropped"]:
            logger.info("cluster: of the parent's clusters these are gone: %s", matching["dropped"])
        counts.update(clusters=len(entries), passes=len(passes), without=content["users_without"])
    return {**content, "metrics": _metrics(choice, matching, len(entries))}


class PassBucket:
    """The bucket task of a pass: what its users say of the centroids."""

    def __init__(self, vectors: str, centroids: NDArray[np.float32]) -> None:
        self.vectors, self.centroids_KD = Folder.at(vectors), centroids

    def __call__(self, bucket: int) -> dict[str, Any]:
        nobody = np.empty((0, self.centroids_KD.shape[1]), np.float32)
        blocks = vector_blocks(part_file(self.vectors, bucket))
        total = reduce(
            add,
            (block_statistics(block, self.centroids_KD) for block in blocks),
            block_statistics(nobody, self.centroids_KD),
        )
        return {name: np.ascontiguousarray(value) for name, value in vars(total).items() if name != "inertia"} | {
            "inertia": total.inertia
        }


class AssignBucket:
    """The bucket task of the assignment: writes who is where, counts sizes, lifecycle and similarity."""

    def __init__(self, target: str, clusters: Clusters) -> None:
        self.target, self.clusters = Folder.at(target), clusters

    def __call__(self, bucket: int) -> dict[str, Any]:
        file = part_file(self.target / CLUSTERS, bucket)
        if not file.exists():
            vectors = part_file(self.target / VECTORS, bucket).read_table().combine_chunks()
            user_ids, column = (vectors.column(name).combine_chunks() for name in ("user_id", "vector"))
            file.write_table(cluster_table(user_ids, vectors_of(column), self.clusters))
        states = part_file(self.target / "segments", bucket).read_table(["user_id", "lifecycle"])
        found = pl.DataFrame(file.read_table()).join(pl.DataFrame(states), on="user_id", how="left")
        sizes = found.drop_nulls("cluster_id").group_by("cluster_id", "lifecycle")
        return {
            "without": found["cluster_id"].null_count(),
            "sizes": sizes.agg(pl.len().alias("users"), pl.col("similarity").cast(pl.Float64).sum())
            .sort("cluster_id", "lifecycle")
            .to_dicts(),
        }


def _decided(folder: Folder, name: str, decide: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What a run that was killed had decided already, else what is decided now."""
    file = folder / DECIDED / f"{name}.json"
    if not file.exists():
        file.write_json(decide())
    decided: dict[str, Any] = file.read_json()
    return decided


def _choose(
    sample_SD: NDArray[np.float32], config: SonderConfig, parent_KD: NDArray[np.float32] | None
) -> dict[str, Any]:
    wished = config.segments.num_clusters
    num_parent = 0 if parent_KD is None else len(parent_KD)
    candidates = (wished,) if wished else sorted({*CANDIDATES, num_parent} - {0, 1})
    choice = choose_num_clusters(sample_SD, seed=config.seed, candidates=candidates)
    if wished and len(sample_SD):
        choice = replace(choice, num_clusters=wished, reason=CONFIGURED)
    elif num_parent:
        choice = number_after(choice, num_parent)
    logger.info("cluster: %d clusters (%s)", choice.num_clusters, choice.reason)
    return {**choice.to_dict(), "chosen_stability": choice.stability}


def _start(
    sample_SD: NDArray[np.float32], num_clusters: int, parent_KD: NDArray[np.float32] | None, seed: int
) -> dict[str, Any]:
    start = choose_start(sample_SD, num_clusters, parent_KD, seed=seed)
    logger.info("cluster: started from %s (%s)", start.clusters_started_from, start.reason)
    return {**start.to_dict(), "centroids": start.centroids_KD.tolist()}


def lloyd_passes(
    target: Folder, centroids_KD: NDArray[np.float32], buckets: list[int], num_workers: int | None
) -> tuple[NDArray[np.float32], list[float]]:
    """Centroids after the passes over everybody, and the inertia that each found."""
    inertias: list[float] = []
    while len(inertias) < MAX_PASSES and not has_settled(inertias):
        arguments = {"vectors": (target / VECTORS).uri, "centroids": centroids_KD}

        def one_pass(arguments: Mapping[str, Any] = arguments) -> dict[str, Any]:
            summaries = over_buckets(PassBucket, arguments, buckets, num_workers=num_workers)
            total = reduce(add, (_statistics(summary) for summary in summaries))
            return {"centroids": moved_centroids(total, arguments["centroids"]), "inertia": total.inertia}

        done = _decided(target / CLUSTERS, f"pass-{len(inertias):02d}", one_pass)
        centroids_KD = np.array(done["centroids"], np.float32)
        inertias.append(float(done["inertia"]))
        logger.info("cluster: pass %d of at most %d, inertia %.1f", len(inertias), MAX_PASSES, inertias[-1])
    return centroids_KD, inertias


def _statistics(summary: Mapping[str, Any]) -> BlockStatistics:
    far_distances_F = np.asarray(summary["far_distances_F"], np.float64)
    sums_KD = np.asarray(summary["sums_KD"], np.float64)
    return BlockStatistics(
        sums_KD=sums_KD,
        counts_K=np.asarray(summary["counts_K"], np.int64),
        inertia=float(summary["inertia"]),
        far_FD=np.asarray(summary["far_FD"], np.float64).reshape(len(far_distances_F), sums_KD.shape[1]),
        far_distances_F=far_distances_F,
    )


def _match(target: Folder, history: Folder, centroids_KD: NDArray[np.float32], of_parent: ParentClusters) -> Matching:
    if not of_parent.has_clusters:
        return first_ids(len(centroids_KD))
    rows_U, columns_U = rows_of_both(target / VECTORS, history, centroids_KD, of_parent)
    users_KP = contingency(rows_U, columns_U, (len(centroids_KD), len(of_parent.ids)))
    return match_clusters(users_KP, of_parent.ids, next_id=of_parent.next_id)


def entries_of(
    ids: tuple[int, ...], described: list[dict[str, Any]], assigned: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """One entry a cluster for clusters.json, in the order of the centroids."""
    rows = [row for summary in assigned for row in summary["sizes"]]
    users = sum(row["users"] for row in rows)
    entries = []
    for cluster_id, description in zip(ids, described, strict=True):
        own = [row for row in rows if row["cluster_id"] == cluster_id]
        size = sum(row["users"] for row in own)
        mix = {state: sum(row["users"] for row in own if row["lifecycle"] == state) for state in STATES}
        entries.append(
            {
                "id": cluster_id,
                **description,
                "users": size,
                "share": size / users if users else 0.0,
                "mean_similarity": sum(row["similarity"] for row in own) / size if size else None,
                "lifecycle": {state: number for state, number in mix.items() if number},
            }
        )
    return entries


def _metrics(choice: Mapping[str, Any], matching: Mapping[str, Any], num_clusters: int) -> dict[str, float]:
    """Flat `segments.*`; what could not be measured is absent."""
    found = {
        "segments.clusters": num_clusters,
        "segments.cluster_stability": choice["chosen_stability"],
        "segments.cluster_ari_parent": matching["ari"],
        "segments.cluster_share_moved": matching["share_moved"],
    }
    return {name: value for name, value in found.items() if value is not None}
