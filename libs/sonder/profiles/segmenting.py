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
from sonder.interests.taxonomy import Taxonomy
from sonder.interests.ward import cluster_interests
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

    @cached_property
    def is_known_I(self) -> NDArray[np.bool_]:
        """Items with a vector: found once, for it reads the whole catalogue."""
        return is_known_vector(self.vectors_ID)

    def segment(self, timelines: Timelines, *, as_of_us: int) -> SegmentedTables:
        """From the events before `as_of`; a user may be absent from interests and affinities."""
        return SegmentedTables(
            interests=cluster_interests(
                timelines,
                self.vectors_ID,
                self.vocabulary,
                as_of_us=as_of_us,
                config=self.interests,
                naming=self.naming,
                is_known_I=self.is_known_I,
            ),
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
