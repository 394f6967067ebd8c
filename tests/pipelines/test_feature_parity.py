"""Logged features computed again: the same bits count, a planted difference is named, another history counts apart."""

from __future__ import annotations

import numpy as np

from pipelines.feature_parity import differences, same_histories
from sonder.core.config import InterestsConfig, SegmentsConfig
from sonder.history.timelines import MICROSECONDS_PER_DAY as DAY
from sonder.profiles.feature_log import logged_rows
from sonder.profiles.user_features import UserFeatures, derive_user_spec
from tests.tiny_log import random_log, timelines_of, vocabulary_of

AS_OF = 40 * DAY
LOG = random_log(1, num_users=30, num_items=3, num_days=60)
TIMELINES = timelines_of(LOG, values=2.0)
VOCABULARY = vocabulary_of(["garden", "books", None])
ITEM_VECTORS = np.eye(3, 5, dtype=np.float32)
VECTORS = np.random.default_rng(0).normal(scale=0.3, size=(30, 5)).astype(np.float32)
FEATURES = UserFeatures.of(
    derive_user_spec(
        TIMELINES,
        VOCABULARY,
        first_us=0,
        cutoff_us=AS_OF,
        item_vectors_ID=ITEM_VECTORS,
        segments=SegmentsConfig(),
        interests=InterestsConfig(),
    ),
    VOCABULARY,
    ITEM_VECTORS,
)
MATRIX = FEATURES.compute(TIMELINES, VECTORS, as_of_us=AS_OF)


def test_the_same_history_and_vector_give_no_difference() -> None:
    differs, is_on_edge = differences(FEATURES, MATRIX, TIMELINES, VECTORS, as_of_us=AS_OF)
    assert not differs.any()
    assert not is_on_edge.any()


def test_a_changed_column_is_found_wherever_it_stands_and_a_missing_value_too() -> None:
    changed = MATRIX.copy()
    changed[4, 0] += 1
    changed[7, FEATURES.spec.num_plain + 2] += np.float32(0.01)  # of the embedding
    changed[9, 1] = np.nan
    differs, _ = differences(FEATURES, changed, TIMELINES, VECTORS, as_of_us=AS_OF)
    assert list(zip(*np.nonzero(differs), strict=True)) == [(4, 0), (7, FEATURES.spec.num_plain + 2), (9, 1)]


def test_a_vector_on_the_edge_of_its_rounding_counts_apart() -> None:
    vectors = VECTORS.copy()
    vectors[3, 1] = np.float32(100.5 / 4096)
    below, above = vectors.copy(), vectors.copy()
    below[3, 1] -= np.float32(1e-7)
    above[3, 1] += np.float32(1e-7)
    logged = FEATURES.compute(TIMELINES, below, as_of_us=AS_OF)
    differs, is_on_edge = differences(FEATURES, logged, TIMELINES, above, as_of_us=AS_OF)
    assert not differs.any()
    assert np.flatnonzero(is_on_edge).tolist() == [3]


def test_a_history_that_was_cut_online_is_compared_and_one_that_held_more_is_not() -> None:
    online = TIMELINES.before(AS_OF).last(3)
    rich = int(np.argmax(TIMELINES.before(AS_OF).lengths))
    grown = timelines_of({"u0000": [*LOG["u0000"], (39.0, 2, "buy")], "stranger": [(1.0, 0, "buy")]}, values=2.0)
    cut, other = (
        logged_rows(one, np.zeros((one.num_users, 1), np.float32), as_of_us=AS_OF, release="r", share=1.0)
        for one in (online, grown)
    )
    rows, histories = same_histories(cut, TIMELINES.before(AS_OF))
    assert rows.tolist() == list(range(30))
    assert histories.lengths[rich] == 3
    assert histories.times_us.tolist() == online.times_us.tolist()
    assert same_histories(other, TIMELINES.before(AS_OF))[0].tolist() == []
