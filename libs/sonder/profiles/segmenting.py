"""What the history alone says of users: interests, lifecycle and affinities at a moment, for batch and online alike.

Shapes: U users, I items, D width. All that was trained or derived is held; the release or the build opens it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from sonder.core.config import InterestsConfig
from sonder.history.timelines import Timelines
from sonder.history.vocabulary import Vocabulary
from sonder.interests.affinity import AffinityModel, affinity_table
from sonder.interests.derive import is_known_vector
from sonder.interests.naming import Naming
from sonder.interests.summary import summarise_interests
from sonder.interests.taxonomy import Taxonomy
from sonder.interests.ward import FoundInterests, clusters_alike, find_interests, interest_table
from sonder.segments.lifecycle import LifecycleThresholds, lifecycle_table


class SegmentedTables(NamedTuple):
    """Of the same users, at the same time."""

    interests: pa.Table  # INTEREST_SCHEMA
    segments: pa.Table  # LIFECYCLE_SCHEMA
    affinities: pa.Table  # AFFINITY_SCHEMA


@dataclass(frozen=True)
class Segmenter:
    """Catalogue, models and thresholds of one release."""

    vectors_ID: NDArray[np.float32]
    vocabulary: Vocabulary
    interests: InterestsConfig  # with what the data decided filled in
    naming: Naming
    taxonomy: Taxonomy
    affinity: AffinityModel
    thresholds: LifecycleThresholds
    summarised: InterestsConfig | None = None  # by which scores read interests; None: they read none

    @cached_property
    def is_known_I(self) -> NDArray[np.bool_]:
        """Items with a vector: found once, for it reads the whole catalogue."""
        return is_known_vector(self.vectors_ID)

    def segment(self, timelines: Timelines, *, as_of_us: int) -> SegmentedTables:
        """From the events before `as_of`; a user may be absent from interests and affinities."""
        return self._tables(timelines, self._found(timelines, as_of_us), as_of_us)

    def segment_and_summarise(
        self, timelines: Timelines, *, as_of_us: int
    ) -> tuple[SegmentedTables, NDArray[np.float64] | None]:
        """The same, and what scores read of the interests [U, 7] (interests.summary), from one clustering for both.

        None where scores read no interests, or those of other clusters: who scores summarises for itself then.
        """
        found = self._found(timelines, as_of_us)
        summary_UI = None
        if self.summarised is not None and clusters_alike(self.summarised, self.interests):
            summary_UI = summarise_interests(
                timelines,
                self.vectors_ID,
                self.vocabulary,
                as_of_us=as_of_us,
                config=self.summarised,
                is_known_I=self.is_known_I,
                clusters_P=found.clusters_P,
            )
        return self._tables(timelines, found, as_of_us), summary_UI

    def _found(self, timelines: Timelines, as_of_us: int) -> FoundInterests:
        return find_interests(
            timelines,
            self.vectors_ID,
            self.vocabulary,
            as_of_us=as_of_us,
            config=self.interests,
            is_known_I=self.is_known_I,
        )

    def _tables(self, timelines: Timelines, found: FoundInterests, as_of_us: int) -> SegmentedTables:
        return SegmentedTables(
            interests=interest_table(found, timelines, self.vocabulary, self.naming),
            segments=lifecycle_table(timelines, as_of_us=as_of_us, thresholds=self.thresholds),
            affinities=affinity_table(
                timelines,
                self.vocabulary,
                self.taxonomy,
                self.affinity,
                as_of_us=as_of_us,
                max_affinities=self.interests.max_affinities,
            ),
        )
