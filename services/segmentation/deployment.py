"""The segmentation deployment: a thin shell around `sonder.profiles.segmenting`."""

from __future__ import annotations

import asyncio

import numpy as np
from numpy.typing import NDArray

from services.held import Held
from services.observed import observed, start_observing
from services.travelling import packed
from services.warming import sample_batch
from sonder.core.config import InterestsConfig
from sonder.encoder.artefact import load_encoder
from sonder.history.vocabulary import Vocabulary
from sonder.interests.affinity_artefact import load_affinity
from sonder.interests.naming import Naming
from sonder.profiles.packing import unpack_timelines
from sonder.profiles.segmenting import Segmenter
from sonder.profiles.user_features import summarised_interests
from sonder.releases.artefacts import Release
from sonder.scoring.heads import load_shared_spec
from sonder.segments.lifecycle import LifecycleThresholds

Segmented = tuple[tuple[bytes, ...], NDArray[np.float64] | None]


class Segmentation:
    """Holds segmenters; computes off the event loop."""

    def __init__(self, workspace: str, release: str | None = None) -> None:
        start_observing("segmentation")
        self._held = Held(workspace, release, _Segmenting)

    @observed("segmentation")
    async def segment(
        self, user_ids: list[str], timelines: list[bytes], as_of_us: int, *, release: str | None = None
    ) -> Segmented:
        """Interests (INTEREST_SCHEMA), lifecycle (LIFECYCLE_SCHEMA), affinities (AFFINITY_SCHEMA) of B users, packed.

        And what scores read of the interests [B, 7], where that comes of the same clusters; else None.
        """
        held = await self._held.of(release)
        return await asyncio.to_thread(held.segment, user_ids, timelines, as_of_us)


class _Segmenting:
    """The segmenter of one release."""

    def __init__(self, opened: Release) -> None:
        vocabulary = Vocabulary.load(opened.items)
        taxonomy, affinity = load_affinity(opened.affinities, vocabulary)
        self._segmenter = Segmenter(
            vectors_ID=load_encoder(opened.encoder).item_vectors,
            vocabulary=vocabulary,
            interests=InterestsConfig.model_validate(opened.interests_config.read_json()),
            naming=Naming.of(vocabulary, as_of_us=opened.named_as_of_us),
            taxonomy=taxonomy,
            affinity=affinity,
            thresholds=LifecycleThresholds.from_dict(opened.thresholds.read_json()),
            summarised=summarised_interests(load_shared_spec(opened.scores)),
        )
        self.segment(*sample_batch(opened.manifest.as_of_us), opened.manifest.as_of_us)

    def segment(self, user_ids: list[str], timelines: list[bytes], as_of_us: int) -> Segmented:
        histories = unpack_timelines(user_ids, timelines)
        tables, summary_BI = self._segmenter.segment_and_summarise(histories, as_of_us=as_of_us)
        return tuple(map(packed, tables)), summary_BI
