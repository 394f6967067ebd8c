"""The segmentation deployment: a thin shell around `sonder.interests` and `sonder.segments`."""

from __future__ import annotations

import asyncio

import pyarrow as pa

from services.warming import sample_batch
from sonder.core.config import InterestsConfig
from sonder.core.workspace import Workspace
from sonder.encoder.artefact import load_encoder
from sonder.history.vocabulary import Vocabulary
from sonder.interests.affinity import affinity_table
from sonder.interests.affinity_artefact import load_affinity
from sonder.interests.naming import Naming
from sonder.interests.ward import cluster_interests
from sonder.profiles.packing import unpack_timelines
from sonder.releases.artefacts import Release
from sonder.segments.lifecycle import LifecycleThresholds, lifecycle_table

SegmentedTables = tuple[pa.Table, pa.Table, pa.Table]


class Segmentation:
    """Holds item vectors, catalogue, affinity model and thresholds of one release."""

    def __init__(self, workspace: str, release: str) -> None:
        opened = Release.open(Workspace.at(workspace), release)
        self._vectors_ID = load_encoder(opened.encoder).item_vectors
        self._vocabulary = Vocabulary.load(opened.items)
        self._thresholds = LifecycleThresholds.from_dict(opened.thresholds.read_json())
        self._interests = InterestsConfig.model_validate(opened.interests_config.read_json())
        self._taxonomy, self._affinity = load_affinity(opened.affinities, self._vocabulary)
        self._naming = Naming.of(self._vocabulary, as_of_us=opened.manifest.as_of_us)
        self._segment(*sample_batch(opened.manifest.as_of_us), opened.manifest.as_of_us)

    async def segment(self, user_ids: list[str], timelines: list[bytes], as_of_us: int) -> SegmentedTables:
        """Interests (INTEREST_SCHEMA), lifecycle (LIFECYCLE_SCHEMA), affinities (AFFINITY_SCHEMA) of B users."""
        return await asyncio.to_thread(self._segment, user_ids, timelines, as_of_us)

    def _segment(self, user_ids: list[str], timelines: list[bytes], as_of_us: int) -> SegmentedTables:
        histories = unpack_timelines(user_ids, timelines)
        interests = cluster_interests(
            histories,
            self._vectors_ID,
            self._vocabulary,
            as_of_us=as_of_us,
            config=self._interests,
            naming=self._naming,
        )
        affinities = affinity_table(
            histories,
            self._vocabulary,
            self._taxonomy,
            self._affinity,
            as_of_us=as_of_us,
            max_affinities=self._interests.max_affinities,
        )
        return interests, lifecycle_table(histories, as_of_us=as_of_us, thresholds=self._thresholds), affinities
