"""Record how far a build has moved from the release that it follows: `report/stability.json` and flat `stability.*`.

Two comparisons of the same users, never mixed up:
same moment  both releases' encoder, clusters, thresholds and heads read the same events, those before the parent's
             as_of (the build's own if that is earlier): what differs, the training did
published    what each release says as of its own end: what a consumer meets; the training and new events together
The parent's encoder at both moments shows what new events alone move.
One sample of whole buckets is read, thinned by digest to SAMPLE_USERS users of both releases: the work does not grow
with the log, but for the size of a bucket.
Limits: events of before the moment that arrived later are read by both sides, though the parent was built without them.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray

from pipelines.lifecycle import thresholds_of
from pipelines.score_rows import features_at
from pipelines.stability_published import Published, compare_audiences, read_published
from sonder.core import telemetry
from sonder.core.errors import ArtefactMismatch, NotFound
from sonder.core.storage import Folder, read_manifest
from sonder.core.workspace import Workspace
from sonder.encoder.alignment import mean_cosine, shared_items
from sonder.encoder.artefact import Encoder, load_encoder
from sonder.encoder.inference import embed_users
from sonder.evaluation.stability import (
    K,
    Movement,
    Overlap,
    churn,
    item_overlap,
    movement,
    population_stability_index,
    user_overlap,
)
from sonder.history.bucket_sample import buckets_reaching
from sonder.history.timelines import Timelines
from sonder.history.vocabulary import Vocabulary
from sonder.profiles.record import iso_time
from sonder.profiles.user_features import UserFeatures
from sonder.releases.artefacts import Release
from sonder.scoring.heads import load_heads
from sonder.scoring.table import Scorer
from sonder.segments.clusters import CLUSTERS_FILE, NO_CLUSTER, Clusters, assign
from sonder.segments.lifecycle import STATES, lifecycle_of

STABILITY_FILE = "stability.json"
SAMPLE_USERS = 5_000
LEAST_SCORED = 100  # users on each side, for the index of a score
logger = logging.getLogger("sonder")


def measure_stability(
    workspace: Workspace, snapshot: str, target: Folder, *, parent: str | None, as_of_us: int
) -> dict[str, Any]:
    """Write target/report/stability.json -> the same: `metrics`, `reason` where there are none, and the details."""
    with telemetry.stage("stability", parent=parent or "none") as counts:
        found = _measure(workspace, snapshot, target, parent, as_of_us)
        counts.update(users=found.get("users", 0), metrics=len(found["metrics"]))
        (target / "report" / STABILITY_FILE).write_json(found)
    if found["reason"] is None:
        shown = found["metrics"]
        logger.info(
            "stability: %d users of both, median cosine with %s %.3f (%.3f without alignment), overlap@%d %s",
            found["users"], parent, shown.get("stability.user_cosine_p50", np.nan),
            shown.get("stability.user_cosine_p50_raw", np.nan), K,
            f"{shown.get(f'stability.neighbour_overlap_at_{K}', np.nan):.3f}",
        )  # fmt: skip
    return found


def _measure(workspace: Workspace, snapshot: str, target: Folder, parent: str | None, as_of_us: int) -> dict[str, Any]:
    nothing: dict[str, Any] = {"parent": parent, "metrics": {}}
    if parent is None:
        return nothing | {"reason": "no release is served yet, so there is none to follow"}
    history = workspace.history(snapshot)
    try:
        release = Release.open(workspace, parent)
        before = Side.open(release.folder, release.items)
    except (ArtefactMismatch, NotFound) as error:
        return nothing | {"reason": f"the parent cannot be read: {error}"}
    after = Side.open(target, target / "items")
    old, new = read_published(release, history, target, buckets_reaching(history, SAMPLE_USERS), most=SAMPLE_USERS)
    if not new.num_users:
        return nothing | {"reason": "no user of the sample is in both releases"}
    moment_us = min(release.manifest.as_of_us, as_of_us)
    is_ordinal = bool(read_manifest(history)["is_ordinal"])
    found = _Comparison(before, after, old, new, moment_us, as_of_us)
    metrics, details = found.of_vectors()
    for part in (found.of_segments(), found.of_scores()):
        metrics |= part[0]
        details |= part[1]
    audiences, not_compared = compare_audiences(workspace, release, history, target, old, new)
    metrics |= {f"stability.audience_churn.{name}": both.share for name, both in audiences.items()}
    return {
        "parent": parent,
        "reason": None,
        "metrics": {name: value for name, value in metrics.items() if np.isfinite(value)},
        "users": new.num_users,
        "moment": str(moment_us) if is_ordinal else iso_time(moment_us),
        "as_of": str(as_of_us) if is_ordinal else iso_time(as_of_us),
        **details,
        "audiences": {name: both.to_dict() for name, both in audiences.items()},
        "audiences_not_compared": not_compared,
    }


@dataclass(frozen=True)
class Side:
    """What one release reads users with."""

    folder: Folder
    encoder: Encoder
    vocabulary: Vocabulary

    @classmethod
    def open(cls, folder: Folder, items: Folder) -> Side:
        return cls(folder, load_encoder(folder / "encoder"), Vocabulary.load(items))

    @cached_property
    def clusters(self) -> Clusters | None:
        folder = self.folder / "clusters"
        return Clusters.load(folder) if (folder / CLUSTERS_FILE).exists() else None

    def cluster_ids(self, vectors_UD: NDArray[np.float32]) -> pl.Series:
        """Id of each user's cluster [U], null without one."""
        if self.clusters is None or not self.clusters.ids:
            return pl.Series([None] * len(vectors_UD), dtype=pl.Int64)
        rows_U = assign(vectors_UD, self.clusters.centroids_KD).rows.astype(np.int64)
        ids_U = np.append(self.clusters.ids, NO_CLUSTER)[rows_U]
        return pl.DataFrame({"id": ids_U}).select(pl.col("id").replace(NO_CLUSTER, None)).to_series()

    def states(self, timelines: Timelines, moment_us: int) -> pl.Series:
        states_U = lifecycle_of(timelines, as_of_us=moment_us, thresholds=thresholds_of(self.folder))
        return pl.Series(np.array(STATES, dtype=object)[states_U].tolist(), dtype=pl.String)

    def scores(self, timelines: Timelines, moment_us: int) -> dict[str, NDArray[np.float64]]:
        """Values of every score over the users who have it."""
        heads = load_heads(self.folder / "scores")
        features = UserFeatures.of_heads(heads, self.vocabulary, self.encoder.item_vectors)
        read = features_at(features, self.encoder, timelines, moment_us)
        table = Scorer.of(heads, self.vocabulary).score(timelines, read, as_of_us=moment_us, with_drivers=False)
        return by_name(table.column("name"), table.column("value"))


@dataclass(frozen=True)
class _Comparison:
    """Both sides, what they published of the users of both, and the moments. Each part -> flat metrics, details."""

    before: Side
    after: Side
    old: Published
    new: Published
    moment_us: int
    as_of_us: int

    @cached_property
    def old_timelines(self) -> Timelines:
        return self.old.timelines(self.before.vocabulary)

    @cached_property
    def new_timelines(self) -> Timelines:
        return self.new.timelines(self.after.vocabulary)

    @cached_property
    def old_UD(self) -> NDArray[np.float32]:
        return embed_users(self.before.encoder, self.old_timelines, as_of_us=self.moment_us)

    @cached_property
    def new_UD(self) -> NDArray[np.float32]:
        return embed_users(self.after.encoder, self.new_timelines, as_of_us=self.moment_us)

    @property
    def has_one_width(self) -> bool:
        return self.before.encoder.spec.dim == self.after.encoder.spec.dim

    def of_vectors(self) -> tuple[dict[str, float], dict[str, Any]]:
        later_UD = embed_users(self.before.encoder, self.old_timelines, as_of_us=self.as_of_us)
        pairs = {"events": (self.old_UD, later_UD)}
        if self.has_one_width:
            pairs["same_moment"] = (self.old_UD, self.new_UD)
            pairs["raw"] = (self.old_UD, self.after.encoder.unturned(self.new_UD))
            pairs["published"] = (self.old.vectors_UD, self.new.vectors_UD)
        moved = {name: movement(*pair) for name, pair in pairs.items()}
        metrics: dict[str, float] = {}
        for name, found in moved.items():
            metrics |= _cosines_of(name, found)
        items, overlaps = self._of_items()
        metrics |= items | {name: overlap.share for name, overlap in overlaps.items()}
        details = {
            "movement": {name: found.to_dict() for name, found in moved.items() if found is not None},
            "overlap": {name: overlap.to_dict() for name, overlap in overlaps.items()},
        }
        return _named(metrics), details

    def _of_items(self) -> tuple[dict[str, float], dict[str, Overlap]]:
        before, after, old_UD, new_UD = self.before.encoder, self.after.encoder, self.old_UD, self.new_UD
        own, of_parent = shared_items(after, self.after.vocabulary, before, self.before.vocabulary)
        metrics: dict[str, float] = {"shared_users": self.new.num_users, "shared_items": len(own)}
        items_before, items_after = before.item_vectors[of_parent], after.item_vectors[own]
        overlaps = {
            f"neighbour_overlap_at_{K}": item_overlap(old_UD, new_UD, items_before, items_after),
            f"user_neighbour_overlap_at_{K}": user_overlap(old_UD, new_UD),
        }
        if self.has_one_width and len(own):
            raw_UD, stale = after.unturned(new_UD), f"stale_index_overlap_at_{K}"
            overlaps[stale] = item_overlap(old_UD, new_UD, items_before, items_before)
            overlaps[f"{stale}_raw"] = item_overlap(old_UD, raw_UD, items_before, items_before)
            metrics["item_alignment_cosine"] = mean_cosine(items_after, items_before)
            metrics["item_alignment_cosine_raw"] = mean_cosine(after.unturned(items_after), items_before)
        return metrics, {name: overlap for name, overlap in overlaps.items() if overlap is not None}

    def of_segments(self) -> tuple[dict[str, float], dict[str, Any]]:
        states = (
            self.before.states(self.old_timelines, self.moment_us),
            self.after.states(self.new_timelines, self.moment_us),
        )
        clusters = self.before.cluster_ids(self.old_UD), self.after.cluster_ids(self.new_UD)
        found = {
            "lifecycle_churn": churn(self.old.users["lifecycle"], self.new.users["lifecycle"]),
            "lifecycle_churn_same_moment": churn(*states),
            "cluster_churn": churn(self.old.users["cluster_id"], self.new.users["cluster_id"]),
            "cluster_churn_same_moment": churn(*clusters),
        }
        metrics = {name: moved.share for name, moved in found.items() if moved is not None}
        return _named(metrics), {"churn": {name: moved.to_dict() for name, moved in found.items() if moved is not None}}

    def of_scores(self) -> tuple[dict[str, float], dict[str, Any]]:
        same = (
            self.before.scores(self.old_timelines, self.moment_us),
            self.after.scores(self.new_timelines, self.moment_us),
        )
        metrics: dict[str, float] = {}
        details: dict[str, dict[str, Any]] = {}
        parts = {"score_psi": (self.old.scores, self.new.scores), "score_psi_same_moment": same}
        for part, (old, new) in parts.items():
            for name in old.keys() & new.keys():
                if min(len(old[name]), len(new[name])) < LEAST_SCORED:
                    continue
                metrics[f"{part}.{name}"] = population_stability_index(old[name], new[name])
                details.setdefault(name, {})[part] = {
                    "psi": metrics[f"{part}.{name}"],
                    "users": [len(old[name]), len(new[name])],
                    "mean": [float(old[name].mean()), float(new[name].mean())],
                }
        return _named(metrics), {"scores": dict(sorted(details.items()))}


def by_name(names: pa.ChunkedArray, values: pa.ChunkedArray) -> dict[str, NDArray[np.float64]]:
    """Values of a long table of scores, by name."""
    frame = pl.DataFrame({"name": pl.Series(names), "value": pl.Series(values).cast(pl.Float64)}).drop_nulls()
    return {str(key[0]): part["value"].to_numpy() for key, part in frame.group_by("name", maintain_order=True)}


def _cosines_of(name: str, found: Movement | None) -> dict[str, float]:
    if found is None:
        return {}
    if name == "same_moment":
        return {
            "user_cosine_p50": found.median,
            "user_cosine_p05": found.quantiles["p05"],
            "users_moved": found.moved,
        }
    return {f"user_cosine_p50_{name}": found.median}


def _named(metrics: dict[str, float]) -> dict[str, float]:
    return {f"stability.{name}": float(value) for name, value in metrics.items()}
