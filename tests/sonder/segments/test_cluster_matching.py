"""Ids across retrains: kept where the users are the same, never used twice."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.metrics import adjusted_rand_score

from sonder.segments.cluster_matching import adjusted_rand_index, contingency, first_ids, match_clusters

labels = arrays(np.int64, 40, elements=st.integers(0, 3))


@given(labels, labels)
def test_the_adjusted_rand_index_is_that_of_scikit_learn(own: np.ndarray, other: np.ndarray) -> None:
    assert adjusted_rand_index(contingency(own, other, (4, 4))) == pytest.approx(adjusted_rand_score(own, other))


def test_users_in_no_cluster_are_in_no_pair() -> None:
    assert contingency(np.array([0, -1, 1]), np.array([1, 1, -1]), (2, 2)).tolist() == [[0, 1], [0, 0]]


@given(st.permutations(range(5)), labels)
def test_the_same_clusters_in_another_order_keep_their_ids(order: list[int], rows: np.ndarray) -> None:
    parent = np.concatenate([rows, np.arange(5)])  # every cluster has somebody
    new = np.argsort(order)[parent]
    found = match_clusters(contingency(new, parent, (5, 5)), (3, 8, 1, 9, 2), next_id=10)
    assert [found.ids[np.argsort(order)[row]] for row in range(5)] == [3, 8, 1, 9, 2]
    assert (found.share_moved, found.ari, found.next_id) == (0, 1, 10)


def test_most_users_keep_their_id_and_the_share_of_the_others_is_told() -> None:
    found = match_clusters(np.array([[1, 8], [9, 2]]), (5, 6), next_id=7)
    assert (found.ids, found.common_users, found.share_moved) == ((6, 5), 20, pytest.approx(0.15))


def test_a_cluster_that_is_new_gets_an_id_that_was_never_used() -> None:
    found = match_clusters(np.array([[90, 0], [0, 50], [0, 45]]), (1, 4), next_id=6)
    assert (found.ids, found.next_id) == ((1, 4, 6), 7)
    assert found.share_moved == pytest.approx(45 / 185)


def test_a_pair_with_little_in_common_is_not_the_same_cluster() -> None:
    found = match_clusters(np.array([[10, 50], [50, 1000]]), (1, 2), next_id=3)
    assert (found.ids, found.dropped) == ((3, 2), (1,))


def test_without_common_users_everything_is_new() -> None:
    found = match_clusters(np.zeros((2, 3), np.int64), (1, 2, 3), next_id=4)
    assert (found.ids, found.next_id, found.ari, found.share_moved) == ((4, 5), 6, None, None)
    assert found.dropped == (1, 2, 3)
    assert first_ids(2).ids == (1, 2)
