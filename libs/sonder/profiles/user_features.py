"""The one way to the features of users: training rows, batch scoring and the scoring deployment all call it.

The columns of history come from sonder.scoring, the lifecycle at the same moment from sonder.segments, the interests
from sonder.interests: floors that do not know one another. Lifecycle thresholds and interest settings are decided
once, before the first test window, and travel inside the specification, so training and serving ask the same question;
those of a release's profiles are decided later, from its whole log, and may differ.

Shapes: U users, I items, D embedding width, F features (spec.columns).
Limits: interests need item vectors, so their columns exist exactly where the embedding is read.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sonder.core.config import InterestsConfig, SegmentsConfig
from sonder.history.timelines import Timelines
from sonder.history.vocabulary import Vocabulary
from sonder.interests.derive import derive_config, is_known_vector
from sonder.interests.summary import summarise_interests
from sonder.scoring.features import compute_features
from sonder.scoring.heads import ScoreHead, shared_spec
from sonder.scoring.specification import BoundSpec, FeatureSpec, bind, derive_spec
from sonder.segments.lifecycle import COLD, STATES, lifecycle_of
from sonder.segments.thresholds import LifecycleThresholds, derive_thresholds

LIFECYCLE, INTERESTS = "lifecycle", "interests"  # keys of a specification's settings
_WARM = tuple(state for place, state in enumerate(STATES) if place != COLD)


def derive_user_spec(
    timelines: Timelines,
    vocabulary: Vocabulary,
    *,
    first_us: int,
    cutoff_us: int,
    item_vectors_ID: NDArray[np.float32] | None,
    segments: SegmentsConfig,
    interests: InterestsConfig,
    excluded_categories: Collection[str] = (),
) -> FeatureSpec:
    """Everything that decides the columns, from the log before `cutoff_us`; `timelines` may be a sample of its users.

    None for `item_vectors_ID`: no embedding and no interests. `spec.without_embedding()` is the narrower one.
    """
    thresholds = derive_thresholds(timelines, end_us=cutoff_us, config=segments)
    settings: dict[str, Any] = {LIFECYCLE: thresholds.to_dict()}
    if item_vectors_ID is not None:
        found = derive_config(interests, item_vectors_ID, vocabulary, as_of_us=cutoff_us)
        settings[INTERESTS] = found.model_dump(mode="json")
    return derive_spec(
        timelines,
        vocabulary,
        first_us=first_us,
        cutoff_us=cutoff_us,
        embedding_dim=0 if item_vectors_ID is None else item_vectors_ID.shape[1],
        states=_WARM,
        reads_interests=item_vectors_ID is not None,
        excluded_categories=excluded_categories,
        settings=settings,
    )


@dataclass(frozen=True)
class UserFeatures:
    """A specification with all that executes it; made once, used for every batch. Nothing in it changes."""

    bound: BoundSpec
    vocabulary: Vocabulary
    item_vectors_ID: NDArray[np.float32] | None  # these three as far as the specification reads them
    thresholds: LifecycleThresholds | None
    interests: InterestsConfig | None

    @classmethod
    def of(
        cls, spec: FeatureSpec, vocabulary: Vocabulary, item_vectors_ID: NDArray[np.float32] | None = None
    ) -> UserFeatures:
        """`item_vectors_ID` are the encoder's; they may be left out where `spec` reads no interests."""
        if spec.reads_interests and item_vectors_ID is None:
            raise ValueError("the specification reads interests and no item vectors were given")
        return cls(
            bound=bind(spec, vocabulary),
            vocabulary=vocabulary,
            item_vectors_ID=item_vectors_ID if spec.reads_interests else None,
            thresholds=LifecycleThresholds.from_dict(spec.settings[LIFECYCLE]) if spec.states else None,
            interests=summarised_interests(spec),
        )

    @classmethod
    def of_heads(
        cls, heads: Sequence[ScoreHead], vocabulary: Vocabulary, item_vectors_ID: NDArray[np.float32] | None = None
    ) -> UserFeatures | None:
        """The one matrix that all these heads read; None without heads."""
        return cls.of(shared_spec(heads), vocabulary, item_vectors_ID) if heads else None

    @property
    def spec(self) -> FeatureSpec:
        return self.bound.spec

    @property
    def needs_vectors(self) -> bool:
        """Whether users' vectors are read; where not, they may be given and change nothing."""
        return self.spec.embedding_dim > 0

    def compute(
        self,
        timelines: Timelines,
        vectors_UD: NDArray[np.float32] | None,
        *,
        as_of_us: int,
        interests_UI: NDArray[np.float64] | None = None,
    ) -> NDArray[np.float32]:
        """Features from the events before `as_of` -> [U, F]; the vectors are of the same users and the same moment.

        `interests_UI` is what `summarise` said of them, if it was asked before: it costs most of the time.
        """
        if self.needs_vectors and vectors_UD is None:
            raise ValueError("the specification reads the embedding and no vectors were given")
        history = timelines.before(as_of_us)
        return compute_features(
            self.bound,
            history,
            cutoff_us=as_of_us,
            embeddings_UD=vectors_UD if self.needs_vectors else None,
            states_U=self._states(history, as_of_us),
            interests_UI=self.summarise(history, as_of_us=as_of_us) if interests_UI is None else interests_UI,
        )

    def _states(self, history: Timelines, as_of_us: int) -> NDArray[np.int8] | None:
        """Place of each user's lifecycle in spec.states; cold is none of them."""
        if self.thresholds is None:
            return None
        lifecycle_U = lifecycle_of(history, as_of_us=as_of_us, thresholds=self.thresholds)
        names = self.spec.states
        places = np.array([names.index(state) if state in names else -1 for state in STATES], dtype=np.int8)
        return places[lifecycle_U]

    def summarise(self, timelines: Timelines, *, as_of_us: int) -> NDArray[np.float64] | None:
        """The interests of each user in numbers [U, 7] (interests.summary); None where no column reads them."""
        if self.item_vectors_ID is None or self.interests is None:
            return None
        return summarise_interests(
            timelines,
            self.item_vectors_ID,
            self.vocabulary,
            as_of_us=as_of_us,
            config=self.interests,
            is_known_I=self._is_known_I,
        )

    @cached_property
    def _is_known_I(self) -> NDArray[np.bool_]:
        """Items with a vector: found once, for it reads the whole catalogue."""
        assert self.item_vectors_ID is not None
        return is_known_vector(self.item_vectors_ID)


def summarised_interests(spec: FeatureSpec | None) -> InterestsConfig | None:
    """By which configuration the interests that a specification reads are summarised; None where it reads none."""
    if spec is None or not spec.reads_interests:
        return None
    return InterestsConfig.model_validate(spec.settings[INTERESTS])
