"""Compute logged online features again from the history snapshot and count the rows that differ: the gate is zero.

Rows of log/features/<release>/ (sonder.profiles.feature_log) against the release's own snapshot, vocabulary, encoder
and heads. A row is compared on the history that was read online: the newest `num_events` events before as_of, if their
digest is the logged one. Another digest (the online history held events that the snapshot has not, or lacked some, or
the user is not there) makes a row not comparable, and it is counted apart.

Columns of history, lifecycle and interests must have the same bits. The embedding was rounded from a vector whose last
bits depend on the batch, so a logged value must be a correct rounding of the vector computed now, within TOLERANCE;
rows where that decides are counted apart too.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray

from pipelines.bucket_tasks import over_buckets
from sonder.core import telemetry
from sonder.core.config import SonderConfig
from sonder.core.ids import bucket_of
from sonder.core.storage import read_manifest
from sonder.core.workspace import Workspace
from sonder.encoder.artefact import load_encoder
from sonder.encoder.inference import embed_users
from sonder.history.snapshot import read_timelines
from sonder.history.timelines import Timelines
from sonder.history.vocabulary import Vocabulary
from sonder.profiles.feature_log import read_feature_log, timeline_digests
from sonder.profiles.user_features import UserFeatures
from sonder.releases.artefacts import Release, served_release
from sonder.scoring.features import ROUNDING
from sonder.scoring.heads import load_heads

TOLERANCE = 2e-6  # of a component of a unit vector, between two batches
COUNTS = ("compared", "mismatched", "not_comparable", "on_the_edge")


def verify_features(
    config: SonderConfig, *, release_id: str | None = None, num_workers: int | None = None
) -> dict[str, Any]:
    """Compare the log of a release (None: the served one) -> counts of rows, the mismatch rate (None where nothing
    was compared), and how many rows differ in each column."""
    workspace = Workspace.at(config.workspace)
    release = Release.open(workspace, release_id or served_release(workspace))
    logged = read_feature_log(workspace.feature_log(release.id))
    num_buckets = len(read_manifest(workspace.history(release.manifest.snapshot))["buckets"])
    buckets = np.unique(bucket_of(pl.Series(logged["user_id"].to_pylist(), dtype=pl.String), num_buckets)).tolist()
    arguments = {"workspace": workspace.root.uri, "release": release.id, "num_buckets": num_buckets}
    with telemetry.stage("verify_features", release=release.id) as counts:
        summaries = over_buckets(VerifyBucket, arguments, buckets, num_workers=num_workers)
        totals: dict[str, int] = {name: sum(summary[name] for summary in summaries) for name in COUNTS}
        counts |= totals
    columns = sum((Counter(summary["columns"]) for summary in summaries), Counter[str]())
    rate = totals["mismatched"] / totals["compared"] if totals["compared"] else None
    return {
        "release": release.id,
        "logged": logged.num_rows,
        **totals,
        "mismatch_rate": rate,
        "columns": dict(columns.most_common()),
    }


class VerifyBucket:
    """The bucket task: the release is opened once, then used for every bucket."""

    def __init__(self, workspace: str, release: str, num_buckets: int) -> None:
        opened = Release.open(Workspace.at(workspace), release)
        self.history = opened.workspace.history(opened.manifest.snapshot)
        self.vocabulary, self.encoder = Vocabulary.load(opened.items), load_encoder(opened.encoder)
        features = UserFeatures.of_heads(load_heads(opened.scores), self.vocabulary, self.encoder.item_vectors)
        assert features is not None, "a release without heads logs no features"
        self.features = features
        self.logged = read_feature_log(opened.workspace.feature_log(release))
        ids = pl.Series(self.logged["user_id"].to_pylist(), dtype=pl.String)
        self.bucket_of_row = bucket_of(ids, num_buckets)

    def __call__(self, bucket: int) -> dict[str, Any]:
        logged = self.logged.take(pa.array(np.flatnonzero(self.bucket_of_row == bucket)))
        timelines = read_timelines(self.history, self.vocabulary, [bucket])
        totals: Counter[str] = Counter(dict.fromkeys(COUNTS, 0))
        columns: Counter[str] = Counter()
        as_of_N = logged["as_of"].cast(pa.int64()).to_numpy()
        for as_of_us in np.unique(as_of_N).tolist():
            asked = logged.take(pa.array(np.flatnonzero(as_of_N == as_of_us)))
            found = self._compare(asked, timelines, as_of_us)
            columns.update(found.pop("columns"))
            totals.update(found)
        return {**totals, "columns": columns}

    def _compare(self, asked: pa.Table, timelines: Timelines, as_of_us: int) -> dict[str, Any]:
        """Counts of rows that were logged at one moment."""
        rows, history = same_histories(asked, timelines.before(as_of_us))
        num_asked, asked = asked.num_rows, asked.take(pa.array(rows))
        width = self.features.spec.num_features
        logged_NF = asked["features"].combine_chunks().flatten().to_numpy().reshape(len(rows), width)
        vectors = embed_users(self.encoder, history, as_of_us=as_of_us)
        differs_NF, is_on_edge_N = differences(self.features, logged_NF, history, vectors, as_of_us=as_of_us)
        names = [description for _, description in self.features.spec.columns]
        return {
            "compared": len(rows),
            "mismatched": int(differs_NF.any(axis=1).sum()),
            "not_comparable": num_asked - len(rows),
            "on_the_edge": int(is_on_edge_N.sum()),
            "columns": {names[column]: int(num) for column, num in enumerate(differs_NF.sum(axis=0)) if num},
        }


def same_histories(asked: pa.Table, history: Timelines) -> tuple[NDArray[np.int64], Timelines]:
    """Rows of `asked` whose history the snapshot has, and these histories: the newest events, as many as logged."""
    places = {user_id: row for row, user_id in enumerate(history.user_ids.to_pylist())}
    found = np.array([places.get(user_id, -1) for user_id in asked["user_id"].to_pylist()], dtype=np.int64)
    known = np.flatnonzero(found >= 0)
    histories, num_N = history.take(found[known]), asked["num_events"].to_numpy()[known]
    histories = histories.keep(histories.ages < num_N[histories.user_rows])
    logged = asked["timeline_digest"].take(pa.array(known)).to_pylist()
    same = np.array([ours == theirs for ours, theirs in zip(timeline_digests(histories), logged, strict=True)], bool)
    return known[same], histories.take(np.flatnonzero(same))


def differences(
    features: UserFeatures,
    logged_NF: NDArray[np.float32],
    history: Timelines,
    vectors_ND: NDArray[np.float32],
    *,
    as_of_us: int,
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Where logged and recomputed features differ [N, F], and the rows whose embedding was rounded the other way."""
    now_NF = features.compute(history, vectors_ND, as_of_us=as_of_us)
    differs = (now_NF != logged_NF) & ~(np.isnan(now_NF) & np.isnan(logged_NF))
    embedding = slice(features.spec.num_plain, None)
    if not features.needs_vectors:
        return differs, np.zeros(len(differs), dtype=np.bool_)
    is_rounding = np.abs(logged_NF[:, embedding] - vectors_ND) <= 0.5 / ROUNDING + TOLERANCE
    is_on_edge = (differs[:, embedding] & is_rounding).any(axis=1)
    differs[:, embedding] &= ~is_rounding
    return differs, is_on_edge
