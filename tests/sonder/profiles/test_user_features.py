"""The one way to features: lifecycle and interests beside the history, the same bits alone and in a batch."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from sonder.core.config import InterestsConfig, SegmentsConfig
from sonder.history.timelines import MICROSECONDS_PER_DAY as DAY
from sonder.profiles.user_features import UserFeatures, derive_user_spec
from sonder.scoring.columns import INTERESTS
from sonder.scoring.leaks import columns_that_see_the_future
from sonder.scoring.specification import FeatureSpec
from sonder.segments.lifecycle import STATES, LifecycleThresholds, lifecycle_of
from tests.tiny_log import ACTIONS, Event, random_log, timelines_of, vocabulary_of

CUTOFF = 80 * DAY
NUM_ITEMS, DIM = 8, 4
VOCABULARY = vocabulary_of(["garden/tools", "garden", "books", None] * 2)
ITEM_VECTORS: NDArray[np.float32] = np.random.default_rng(1).normal(size=(NUM_ITEMS, DIM)).astype(np.float32)
LOG = random_log(3, num_users=50, num_items=NUM_ITEMS, num_days=100) | {"nobody": [], "later": [(90.0, 1, "buy")]}
TIMELINES = timelines_of(LOG, values=3.3)
VECTORS = np.random.default_rng(2).normal(size=(len(LOG), DIM)).astype(np.float32)


def spec_of(item_vectors: NDArray[np.float32] | None = ITEM_VECTORS) -> FeatureSpec:
    return derive_user_spec(
        TIMELINES,
        VOCABULARY,
        first_us=0,
        cutoff_us=CUTOFF,
        item_vectors_ID=item_vectors,
        segments=SegmentsConfig(),
        interests=InterestsConfig(),
    )


SPEC = spec_of()
FEATURES = UserFeatures.of(SPEC, VOCABULARY, ITEM_VECTORS)
NAMES = [description for _, description in SPEC.columns]
MATRIX = FEATURES.compute(TIMELINES, VECTORS, as_of_us=CUTOFF)


def test_exactly_the_column_of_the_lifecycle_at_the_moment_is_one() -> None:
    thresholds = LifecycleThresholds.from_dict(SPEC.settings["lifecycle"])
    states = [STATES[state] for state in lifecycle_of(TIMELINES, as_of_us=CUTOFF, thresholds=thresholds)]
    columns = [place for place, (family, _) in enumerate(SPEC.columns) if family == "lifecycle"]
    for row, state in zip(MATRIX, states, strict=True):
        held = [NAMES[column] for column in columns if row[column] == 1]
        assert held == ([] if state == "cold" else [f"lifecycle is {state!r} (1 yes, 0 no)"])
    assert len(set(states)) > 3


def test_interests_stand_between_the_plain_columns_and_the_embedding() -> None:
    assert NAMES[SPEC.num_plain - len(INTERESTS) : SPEC.num_plain] == list(INTERESTS)
    number = MATRIX[:, NAMES.index("number of interests")]
    assert number[list(LOG).index("nobody")] == 0
    assert number.max() > 1
    assert np.isnan(MATRIX[list(LOG).index("later"), NAMES.index("weight of the strongest interest")])


def test_without_the_embedding_the_first_columns_are_the_same() -> None:
    plain = UserFeatures.of(SPEC.without_embedding(), VOCABULARY)
    assert not plain.needs_vectors
    found = plain.compute(TIMELINES, None, as_of_us=CUTOFF)
    assert found.tobytes() == MATRIX[:, : found.shape[1]].tobytes()
    assert found.shape[1] == SPEC.num_features - DIM - len(INTERESTS)
    assert spec_of(None).columns == plain.spec.columns


def test_what_decides_the_columns_travels_with_them() -> None:
    again = UserFeatures.of(FeatureSpec.from_dict(SPEC.to_dict()), VOCABULARY, ITEM_VECTORS)
    assert again.compute(TIMELINES, VECTORS, as_of_us=CUTOFF).tobytes() == MATRIX.tobytes()


def test_no_column_sees_the_future() -> None:
    caught = columns_that_see_the_future(
        lambda timelines: FEATURES.compute(timelines, VECTORS, as_of_us=CUTOFF), TIMELINES, CUTOFF, names=NAMES
    )
    assert caught == ()


events = st.lists(
    st.tuples(st.floats(0, 95, allow_nan=False), st.integers(0, NUM_ITEMS - 1), st.sampled_from(ACTIONS)), max_size=12
)


@settings(max_examples=25, deadline=None)
@given(users=st.lists(events, min_size=1, max_size=6), value=st.floats(-1e6, 1e6) | st.just(float("nan")))
def test_a_user_alone_has_the_bits_of_the_batch_in_every_column(users: list[list[Event]], value: float) -> None:
    timelines = timelines_of({f"u{place}": history for place, history in enumerate(users)}, values=value)
    vectors = np.resize(VECTORS, (len(users), DIM))
    batch = FEATURES.compute(timelines, vectors, as_of_us=CUTOFF)
    for row in range(len(users)):
        alone = FEATURES.compute(timelines.take(np.array([row])), vectors[row : row + 1], as_of_us=CUTOFF)
        assert alone[0].tobytes() == batch[row].tobytes()


def test_missing_vectors_are_said_at_once() -> None:
    with pytest.raises(ValueError, match="no vectors"):
        FEATURES.compute(TIMELINES, None, as_of_us=CUTOFF)
    with pytest.raises(ValueError, match="no item vectors"):
        UserFeatures.of(SPEC, VOCABULARY)
