"""The interests of a user in seven numbers, against the interests themselves."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from sonder.core.config import InterestsConfig
from sonder.history.timelines import MICROSECONDS_PER_DAY as DAY
from sonder.interests.summary import NUM_COLUMNS, summarise_interests
from sonder.interests.ward import cluster_interests, clusters_alike, find_interests
from tests.tiny_log import random_log, timelines_of, vocabulary_of

NUM_ITEMS = 12
VOCABULARY = vocabulary_of([None] * NUM_ITEMS)
VECTORS: NDArray[np.float32] = np.random.default_rng(3).normal(size=(NUM_ITEMS, 6)).astype(np.float32)
CONFIG = InterestsConfig(merge_distance=2.5, half_life_days=10.0, max_interests=3)
LOG = random_log(9, num_users=40, num_items=NUM_ITEMS, num_days=60) | {"nobody": [], "hides": [(3.0, 1, "hide")]}


def test_the_numbers_are_those_of_the_interests_that_are_kept() -> None:
    timelines = timelines_of(LOG)
    summary = summarise_interests(timelines, VECTORS, VOCABULARY, as_of_us=50 * DAY, config=CONFIG)
    rows = cluster_interests(timelines, VECTORS, VOCABULARY, as_of_us=50 * DAY, config=CONFIG).to_pylist()
    for user, found in zip(LOG, summary, strict=True):
        interests = [row for row in rows if row["user_id"] == user]
        assert found[0] == len(interests)
        if not interests:
            assert np.isnan(found[1:]).all()
            continue
        weights = np.array([row["weight"] for row in interests])
        assert found[1] == pytest.approx(weights[0])
        assert found[2] == pytest.approx(-(weights * np.log(np.maximum(weights, 1e-30))).sum(), abs=1e-5)
        for column, state in enumerate(("new", "growing", "fading"), 3):
            assert found[column] == pytest.approx(sum(row["weight"] for row in interests if row["state"] == state))
        assert found[6] == pytest.approx(interests[0]["recency_days"])
    assert summary.shape == (len(LOG), NUM_COLUMNS)
    assert (summary[:, 0] > 1).any()


def test_a_user_alone_has_the_bits_of_the_batch() -> None:
    timelines = timelines_of(LOG)
    batch = summarise_interests(timelines, VECTORS, VOCABULARY, as_of_us=50 * DAY, config=CONFIG)
    for row in range(timelines.num_users):
        one = timelines.take(np.array([row]))
        alone = summarise_interests(one, VECTORS, VOCABULARY, as_of_us=50 * DAY, config=CONFIG)
        assert alone[0].tobytes() == batch[row].tobytes()


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1_000), half_life=st.floats(1.0, 60.0))
def test_clusters_that_another_half_life_found_are_the_same_to_the_bit(seed: int, half_life: float) -> None:
    timelines = timelines_of(random_log(seed, num_users=9, num_items=NUM_ITEMS, num_days=60) | {"nobody": []})
    other = CONFIG.model_copy(update={"half_life_days": half_life})
    assert clusters_alike(CONFIG, other)
    found = find_interests(timelines, VECTORS, VOCABULARY, as_of_us=50 * DAY, config=other)
    asked = {"as_of_us": 50 * DAY, "config": CONFIG}
    anew = summarise_interests(timelines, VECTORS, VOCABULARY, **asked)
    again = summarise_interests(timelines, VECTORS, VOCABULARY, **asked, clusters_P=found.clusters_P)
    assert again.tobytes() == anew.tobytes()


@pytest.mark.parametrize("changed", [{"merge_distance": 2.0}, {"max_events": 7}])
def test_other_distances_and_depths_are_other_clusters(changed: dict[str, float]) -> None:
    assert not clusters_alike(CONFIG, CONFIG.model_copy(update=changed))
