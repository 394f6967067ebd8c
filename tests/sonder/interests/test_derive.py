"""What the data decides about interests depends on the catalogue and the log, not on chance or on units."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.spatial.distance import pdist

from sonder.core.config import InterestsConfig
from sonder.history.timelines import MICROSECONDS_PER_DAY as DAY
from sonder.interests.derive import derive_config, derive_half_life_days, derive_merge_distance, is_known_vector
from tests.tiny_log import vocabulary_of


def catalogue(num: int, seed: int = 0) -> NDArray[np.float32]:
    vectors = np.random.default_rng(seed).normal(size=(num, 6)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def test_the_merge_distance_is_the_low_quantile_over_all_pairs() -> None:
    vectors = catalogue(400)
    assert derive_merge_distance(vectors) == pytest.approx(np.quantile(pdist(vectors), 0.05), rel=0.02)
    assert derive_merge_distance(vectors) == derive_merge_distance(vectors.copy())


def test_an_item_is_never_compared_with_itself() -> None:
    pair = np.array([[1.0, 0.0], [0.0, 1.0]], np.float32)
    assert derive_merge_distance(pair) == pytest.approx(np.sqrt(2))
    assert derive_merge_distance(np.repeat(pair[:1], 50, axis=0)) == 1e-6  # duplicates merge, and nothing divides by 0


def test_a_vector_of_zeros_is_an_item_that_was_never_seen() -> None:
    vectors = np.array([[0, 0], [0, -1e-9], [1, 0]], np.float32)
    assert is_known_vector(vectors).tolist() == [False, True, True]
    seen = catalogue(100)
    unseen = np.zeros((300, 6), np.float32)
    assert derive_merge_distance(np.concatenate([seen, unseen])) == derive_merge_distance(seen)


@pytest.mark.parametrize(
    ("first_day", "as_of", "expected"), [(0, 80, 10.0), (40, 80, 5.0), (0, 9_999, 60.0), (90, 80, 30.0), (80, 80, 30.0)]
)
def test_the_half_life_is_an_eighth_of_the_log_up_to_the_moment(first_day: float, as_of: int, expected: float) -> None:
    vocabulary = vocabulary_of(["c"], first_day=first_day)
    assert derive_half_life_days(vocabulary, as_of_us=as_of * DAY) == expected


def test_a_derived_configuration_derives_to_itself() -> None:
    vectors, vocabulary = catalogue(50), vocabulary_of(["c"])
    once = derive_config(InterestsConfig(max_interests=3), vectors, vocabulary, as_of_us=80 * DAY)
    assert once.max_interests == 3
    assert derive_config(once, catalogue(50, seed=1), vocabulary, as_of_us=8_000 * DAY) is once
