"""Everything about the users of a bucket, by carried models: what costs much for those with news, the rest for all.

Read once a bucket: the merged history, and what the parent release says of the same users. Made for users with news
alone: vectors, and interests (also of those an event of whom left a window: sonder.interests.aging); both are kept or
moved on for the others. Made for everybody, because it moves with the clock: lifecycle, affinities, clusters, features
and scores with their drivers, profiles.
Writes the bucket's file of every part of a release, the profiles last, and in scratch/ what the driver adds up:
popularity, growth and a summary. A bucket whose summary exists is not done again.
With `everybody` nothing is kept: the same release, by the long way round.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipelines.bucket_tasks import part_file
from pipelines.embed import vector_table
from pipelines.score import SUMMARIES, USERS
from pipelines.segment import INTERESTS_FILE, THRESHOLDS_FILE
from sonder.core.config import InterestsConfig
from sonder.core.storage import Folder
from sonder.encoder.artefact import load_encoder
from sonder.encoder.inference import embed_users
from sonder.encoder.trend import decayed_counts
from sonder.history.snapshot import read_timelines, read_users, touched_file
from sonder.history.timelines import Timelines
from sonder.history.vocabulary import Vocabulary
from sonder.interests.affinity import affinity_table
from sonder.interests.affinity_artefact import load_affinity
from sonder.interests.aging import leave_a_window, moved_on
from sonder.interests.naming import Naming
from sonder.interests.summary import NUM_COLUMNS, summary_at, summary_table
from sonder.interests.ward import INTEREST_SCHEMA, cluster_interests
from sonder.profiles.assembling import StageOutputs, assemble_profiles
from sonder.profiles.user_features import UserFeatures
from sonder.scoring.heads import load_heads
from sonder.scoring.table import Scorer
from sonder.segments.clusters import Clusters, cluster_table
from sonder.segments.lifecycle import lifecycle_table
from sonder.segments.overview import LifecycleOverview
from sonder.segments.thresholds import LifecycleThresholds

GROWTH, POPULARITY, DONE = "growth", "popularity", "done"  # folders of scratch
Rows = NDArray[np.bool_]


class IncrementBucket:
    """The bucket task: models are loaded once, then used for every bucket."""

    def __init__(
        self,
        history: str,
        target: str,
        parent: str,
        scratch: str,
        first_us: int,
        before_us: int,
        as_of_us: int,
        named_as_of_us: int,
        is_ordinal: bool,
        keeps_interests: bool,
        everybody: bool,
        sensitive: Sequence[str],
    ) -> None:
        self.history, self.target, self.parent = Folder.at(history), Folder.at(target), Folder.at(parent)
        self.scratch, self.before_us, self.as_of_us = Folder.at(scratch), before_us, as_of_us
        self.is_ordinal, self.keeps_interests, self.everybody = is_ordinal, keeps_interests, everybody
        self.vocabulary = Vocabulary.load(self.target / "items")
        self.encoder = load_encoder(self.target / "encoder")
        self.naming = Naming.of(self.vocabulary, as_of_us=named_as_of_us)
        self.interests = InterestsConfig.model_validate((self.target / "interests" / INTERESTS_FILE).read_json())
        self.taxonomy, self.affinity = load_affinity(self.target / "affinities", self.vocabulary)
        self.thresholds = LifecycleThresholds.from_dict((self.target / "segments" / THRESHOLDS_FILE).read_json())
        self.clusters = Clusters.load(self.target / "clusters")
        self.scorer = Scorer.of(load_heads(self.target / "scores"), self.vocabulary, sensitive=sensitive)
        self.features = UserFeatures.of_heads(self.scorer.heads, self.vocabulary, self.encoder.item_vectors)
        self.base_rates = {name: mean for head in self.scorer.heads for name, mean in head.fallbacks.items()}
        self.growth = LifecycleOverview.empty(first_us, as_of_us, self.thresholds)

    def __call__(self, bucket: int) -> dict[str, Any]:
        done = self.scratch / DONE / f"bucket={bucket:03d}.json"
        if not done.exists():
            done.write_json(self._make(bucket))
        summary: dict[str, Any] = done.read_json()
        return summary

    def _make(self, bucket: int) -> dict[str, Any]:
        timelines = read_timelines(self.history, self.vocabulary, [bucket])
        is_kept = self._is_kept(timelines, bucket)
        vectors_UD, num_embedded = self._vectors(timelines, bucket, is_kept)
        interests, num_found = self._interests(timelines, bucket, is_kept)
        tables = {
            "vectors": vector_table(timelines.user_ids, vectors_UD),
            "interests": interests,
            "segments": lifecycle_table(timelines, as_of_us=self.as_of_us, thresholds=self.thresholds),
            "affinities": affinity_table(
                timelines,
                self.vocabulary,
                self.taxonomy,
                self.affinity,
                as_of_us=self.as_of_us,
                max_affinities=self.interests.max_affinities,
            ),
            "clusters": cluster_table(timelines.user_ids, vectors_UD, self.clusters),
        }
        scores, num_summarised = self._scores(timelines, bucket, is_kept, vectors_UD)
        for part, table in tables.items():
            part_file(self.target / part, bucket).write_table(table)
        part_file(self.target / "scores" / USERS, bucket).write_table(scores)
        outputs = StageOutputs(
            **{part: tables[part] for part in ("vectors", "interests", "affinities", "segments")},
            scores=scores,
            users=read_users(self.history, bucket),
        )
        profiles = assemble_profiles(
            timelines, outputs, base_rates=self.base_rates, as_of_us=self.as_of_us, clusters=self.clusters
        )
        part_file(self.target / "profiles", bucket).write_table(profiles)
        self._leave_counts(timelines, bucket)
        return {
            "profiles": profiles.num_rows,
            "cold": int(pc.sum(profiles.column("is_cold")).as_py() or 0),
            "acted": int((~is_kept).sum()),
            "embedded": num_embedded,
            "interests_found": num_found,
            "interests_summarised": num_summarised,
            "interests": interests.num_rows,
            "affinities": tables["affinities"].num_rows,
            "lifecycle": Counter(tables["segments"].column("lifecycle").to_pylist()),
            **self._cluster_counts(tables["clusters"], tables["segments"], bucket),
        }

    def _is_kept(self, timelines: Timelines, bucket: int) -> Rows:
        """Users [U] whose history is the one that the parent release saw."""
        if self.everybody:
            return np.zeros(timelines.num_users, dtype=np.bool_)
        known = self._of_parent("vectors", bucket).column("user_id")
        changed = touched_file(self.history, bucket)
        touched = changed.read_table().column(0).cast(pa.string()) if changed.exists() else pa.array([], pa.string())
        is_known = pc.is_in(timelines.user_ids, value_set=known.combine_chunks())
        kept: Rows = pc.and_not(is_known, pc.is_in(timelines.user_ids, value_set=touched)).to_numpy(
            zero_copy_only=False
        )
        return kept

    def _vectors(self, timelines: Timelines, bucket: int, is_kept: Rows) -> tuple[NDArray[np.float32], int]:
        """Vectors of all users [U, D], and how many of them were embedded now."""
        vectors_UD = np.zeros((timelines.num_users, self.encoder.spec.dim), dtype=np.float32)
        new = np.flatnonzero(~is_kept)
        if len(new):
            vectors_UD[new] = embed_users(self.encoder, timelines.take(new), as_of_us=self.as_of_us)
        if is_kept.any():
            table = self._of_parent("vectors", bucket).combine_chunks()
            column = table.column("vector").combine_chunks()
            held_VD = column.flatten().to_numpy(zero_copy_only=False).reshape(len(column), -1)
            vectors_UD[is_kept] = held_VD[_places(timelines.user_ids, table)[is_kept]]
        return vectors_UD, len(new)

    def _interests(self, timelines: Timelines, bucket: int, is_kept: Rows) -> tuple[pa.Table, int]:
        """Interests of all users, and of how many of them they were found anew."""
        stays = is_kept & self._stays(timelines, self.interests) & self.keeps_interests
        new = np.flatnonzero(~stays)
        found = INTEREST_SCHEMA.empty_table()
        if len(new):
            found = cluster_interests(
                timelines.take(new),
                self.encoder.item_vectors,
                self.vocabulary,
                as_of_us=self.as_of_us,
                config=self.interests,
                naming=self.naming,
            )
        if not stays.any():
            return found, len(new)
        kept = _of_users(self._of_parent("interests", bucket), timelines.user_ids.filter(pa.array(stays)))
        joined = pa.concat_tables([found, moved_on(kept, as_of_us=self.as_of_us)])
        rows = pc.index_in(joined.column("user_id"), value_set=timelines.user_ids).to_numpy()
        order = np.lexsort((joined.column("rank").to_numpy(), rows))
        return joined.take(pa.array(order)).combine_chunks(), len(new)

    def _scores(
        self, timelines: Timelines, bucket: int, is_kept: Rows, vectors_UD: NDArray[np.float32]
    ) -> tuple[pa.Table, int]:
        """Scores of all users, and of how many of them the interests that heads read were found anew."""
        if self.features is None:
            return self.scorer.score(timelines, None, as_of_us=self.as_of_us), 0
        summary_UI, num_found = None, 0
        if self.features.interests is not None:
            summary_UI, num_found = self._summaries(self.features, timelines, bucket, is_kept)
            told = summary_table(timelines.user_ids, summary_UI, as_of_us=self.as_of_us)
            part_file(self.target / "scores" / SUMMARIES, bucket).write_table(told)
        features_UF = self.features.compute(timelines, vectors_UD, as_of_us=self.as_of_us, interests_UI=summary_UI)
        return self.scorer.score(timelines, features_UF, as_of_us=self.as_of_us), num_found

    def _summaries(
        self, features: UserFeatures, timelines: Timelines, bucket: int, is_kept: Rows
    ) -> tuple[NDArray[np.float64], int]:
        assert features.interests is not None
        held = part_file(self.parent / "scores" / SUMMARIES, bucket)
        stays = is_kept & self._stays(timelines, features.interests) & held.exists()  # an older release has none
        summary_UI, new = np.empty((timelines.num_users, NUM_COLUMNS)), np.flatnonzero(~stays)
        if len(new):
            summary_UI[new] = features.summarise(timelines.take(new), as_of_us=self.as_of_us)
        if stays.any():
            table = held.read_table()
            summary_UI[stays] = summary_at(table, as_of_us=self.as_of_us)[_places(timelines.user_ids, table)[stays]]
        return summary_UI, len(new)

    def _stays(self, timelines: Timelines, config: InterestsConfig) -> Rows:
        """Users [U] whose interests only time moves on."""
        assert config.half_life_days is not None
        return ~leave_a_window(
            timelines, before_us=self.before_us, as_of_us=self.as_of_us, half_life_days=config.half_life_days
        )

    def _leave_counts(self, timelines: Timelines, bucket: int) -> None:
        """What adds up over buckets, for the driver."""
        wanted = timelines.keep((self.vocabulary.weight_of(timelines.actions) > 0) & (timelines.items >= 0))
        counts_I = decayed_counts(
            wanted.items,
            wanted.times_us,
            self.vocabulary.num_items,
            as_of_us=self.as_of_us,
            half_life_us=self.encoder.half_life_us,
        )
        items = np.flatnonzero(counts_I)
        popularity = pa.table({"item": items, "count": counts_I[items]})
        (self.scratch / POPULARITY / f"bucket={bucket:03d}.parquet").write_table(popularity)
        if not self.is_ordinal:
            counted = self.growth.count(timelines.offsets, timelines.times_us).counts()
            (self.scratch / GROWTH / f"bucket={bucket:03d}.json").write_json(counted)

    def _cluster_counts(self, clusters: pa.Table, segments: pa.Table, bucket: int) -> Mapping[str, Any]:
        """Sizes as pipelines.cluster counts them, and how many users went from one cluster to another."""
        states = pl.DataFrame(pl.from_arrow(segments.select(["user_id", "lifecycle"])))
        found = pl.DataFrame(pl.from_arrow(clusters)).join(states, on="user_id", how="left")
        sizes = found.drop_nulls("cluster_id").group_by("cluster_id", "lifecycle")
        before = pl.DataFrame(pl.from_arrow(self._of_parent("clusters", bucket).select(["user_id", "cluster_id"])))
        both = found.join(before, on="user_id", suffix="_before").drop_nulls(["cluster_id", "cluster_id_before"])
        return {
            "without": found["cluster_id"].null_count(),
            "sizes": sizes.agg(pl.len().alias("users"), pl.col("similarity").cast(pl.Float64).sum())
            .sort("cluster_id", "lifecycle")
            .to_dicts(),
            "in_both": both.height,
            "moved": int((both["cluster_id"] != both["cluster_id_before"]).sum()),
        }

    def _of_parent(self, part: str, bucket: int) -> pa.Table:
        """A part of the parent release; a bucket without users has no file there."""
        file = part_file(self.parent / part, bucket)
        if not file.exists():
            return _EMPTY[part]
        return file.read_table()


_EMPTY = {
    "vectors": vector_table(pa.array([], pa.string()), np.empty((0, 1), np.float32)),
    "interests": INTEREST_SCHEMA.empty_table(),
    "clusters": pa.table({"user_id": pa.array([], pa.string()), "cluster_id": pa.array([], pa.int16())}),
}


def _places(user_ids: pa.Array, table: pa.Table) -> NDArray[np.int64]:
    """Row of each user in a table with one row per user [U], -1 without one."""
    known = table.column("user_id").combine_chunks().cast(pa.string())
    rows: NDArray[np.int64] = pc.index_in(user_ids, value_set=known).fill_null(-1).to_numpy().astype(np.int64)
    return rows


def _of_users(table: pa.Table, user_ids: pa.Array) -> pa.Table:
    return table.filter(pc.is_in(table.column("user_id"), value_set=user_ids))
