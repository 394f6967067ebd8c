"""The profiles that the models of one release give of any users at any moment; and what those models know.

A build, a backfill and a repair differ in whom and when they ask; the answer is a function of the histories before
`as_of` and of the release. The same functions make the profiles of a build (pipelines/segment.py, score.py,
profiles.py), so the release asked again at its own `as_of` says what it says already.
Limits: what the user table says (attributes, consent) has no history and is told as of the snapshot; an item that the
release does not know is unknown here too, as it is online.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa

from sonder.core.config import InterestsConfig
from sonder.core.workspace import Workspace
from sonder.encoder.artefact import Encoder, load_encoder
from sonder.encoder.inference import embed_users
from sonder.history.timelines import MICROSECONDS_PER_DAY, Timelines
from sonder.history.vocabulary import Vocabulary
from sonder.interests.affinity_artefact import load_affinity
from sonder.interests.naming import Naming
from sonder.profiles.assembling import StageOutputs, assemble_profiles
from sonder.profiles.segmenting import Segmenter
from sonder.profiles.user_features import UserFeatures
from sonder.releases.artefacts import Release
from sonder.scoring.heads import load_heads
from sonder.scoring.table import Scorer
from sonder.segments.clusters import Clusters
from sonder.segments.lifecycle import LifecycleThresholds


@dataclass(frozen=True)
class Profiler:
    """Everything that one release has learnt, opened."""

    vocabulary: Vocabulary
    encoder: Encoder
    segmenter: Segmenter
    scorer: Scorer
    features: UserFeatures | None
    clusters: Clusters | None
    base_rates: dict[str, float]

    @classmethod
    def of(cls, release: Release, *, named_as_of_us: int) -> Profiler:
        """Open a release; interests are named by the catalogue as it was known at `named_as_of`."""
        vocabulary, encoder = Vocabulary.load(release.items), load_encoder(release.encoder)
        taxonomy, affinity = load_affinity(release.affinities, vocabulary)
        sensitive = release.manifest.config.get("scoring", {}).get("sensitive_categories", ())
        scorer = Scorer.of(load_heads(release.scores), vocabulary, sensitive=sensitive)
        segmenter = Segmenter(
            vectors_ID=encoder.item_vectors,
            vocabulary=vocabulary,
            interests=InterestsConfig.model_validate(release.interests_config.read_json()),
            naming=Naming.of(vocabulary, as_of_us=named_as_of_us),
            taxonomy=taxonomy,
            affinity=affinity,
            thresholds=LifecycleThresholds.from_dict(release.thresholds.read_json()),
        )
        features = UserFeatures.of_heads(scorer.heads, vocabulary, encoder.item_vectors)
        return cls(vocabulary, encoder, segmenter, scorer, features, release.load_clusters(), release.base_rates())

    def named_at(self, as_of_us: int) -> Profiler:
        """The same, with interests named by the catalogue of another moment."""
        naming = Naming.of(self.vocabulary, as_of_us=as_of_us)
        return replace(self, segmenter=replace(self.segmenter, naming=naming))

    def profiles(
        self, timelines: Timelines, users: pa.Table | None, *, as_of_us: int, with_drivers: bool = True
    ) -> pa.Table:
        """PROFILE_SCHEMA of the users, in their order, from their events before `as_of`.

        `users`: rows of the user table (USER_SCHEMA), of anybody; None without one.
        """
        history = timelines.before(as_of_us)
        vectors_UD = embed_users(self.encoder, history, as_of_us=as_of_us)
        features = None
        if self.features is not None:
            features = self.features.compute(history, vectors_UD, as_of_us=as_of_us)
        segmented = self.segmenter.segment(history, as_of_us=as_of_us)
        offsets = np.arange(len(vectors_UD) + 1, dtype=np.int32) * vectors_UD.shape[1]
        vectors = pa.ListArray.from_arrays(pa.array(offsets), pa.array(vectors_UD.ravel(), pa.float32()))
        outputs = StageOutputs(
            vectors=pa.table({"user_id": history.user_ids, "vector": vectors}),
            interests=segmented.interests,
            affinities=segmented.affinities,
            segments=segmented.segments,
            scores=self.scorer.score(history, features, as_of_us=as_of_us, with_drivers=with_drivers),
            users=users,
        )
        return assemble_profiles(
            history, outputs, base_rates=self.base_rates, as_of_us=as_of_us, clusters=self.clusters
        )


def trained_until_us(workspace: Workspace, release: Release) -> dict[str, int]:
    """The end of what each part of a release has learnt from: the events at or after it are unknown to the part.

    `encoder` includes those whose weights it went on from; `scores.<task>` the labels it was fitted to; `derived`
    everything that the build took from the log at its own `as_of`: thresholds, affinities, interests, clusters.
    """
    known = {"derived": release.manifest.as_of_us, "encoder": _encoder_until_us(workspace, release)}
    for head in load_heads(release.scores):
        until_us = int(head.metrics.get("cutoff_us", release.manifest.as_of_us))
        reads_encoder = head.spec.embedding_dim > 0
        known[f"scores.{head.task.name}"] = max(until_us, known["encoder"]) if reads_encoder else until_us
    return known


def _encoder_until_us(workspace: Workspace, release: Release) -> int:
    """Under `temporal` the start of the test window, else the end of the log; the latest of it and its ancestors."""
    until_us, seen = 0, set()
    opened: Release | None = release
    while opened is not None and opened.id not in seen:
        seen.add(opened.id)
        until_us = max(until_us, _own_encoder_until_us(opened.manifest.config, opened.manifest.as_of_us))
        parent = opened.manifest.config["encoder"].get("parent")
        if parent is None or not workspace.release(parent).is_published():
            break
        opened = Release.open(workspace, parent)
    return until_us


def _own_encoder_until_us(config: dict[str, Any], as_of_us: int) -> int:
    if config["evaluation"]["protocol"] != "temporal":
        return as_of_us
    return as_of_us - int(config["evaluation"]["test_days"]) * MICROSECONDS_PER_DAY
