"""Where a retrain starts: at its parent's clusters in a turned space, elsewhere only when that is clearly better."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from sonder.segments.cluster_matching import adjusted_rand_index, contingency
from sonder.segments.cluster_start import (
    FITS_WORSE,
    FRESH,
    KEPT,
    NO_PARENT,
    NUMBER_CHANGED,
    PARENT,
    WORSE,
    choose_start,
    fresh_centroids,
    mean_directions,
    user_sums,
)
from sonder.segments.clusters import assign, block_statistics, unit_rows
from tests.blobs import blobs


def turned(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """The same users in the coordinates of another training, each a little elsewhere."""
    draw = np.random.default_rng(5)
    rotation, _ = np.linalg.qr(draw.standard_normal((vectors.shape[1], vectors.shape[1])))
    return (vectors @ rotation + 0.02 * draw.standard_normal(vectors.shape)).astype(np.float32)


def continuum(users: int = 900) -> NDArray[np.float32]:
    return unit_rows(np.random.default_rng(1).standard_normal((users, 6)).astype(np.float32)).astype(np.float32)


def test_in_a_continuum_the_parents_clusters_are_kept_where_a_fresh_start_cuts_elsewhere() -> None:
    before, after = continuum(), turned(continuum())
    old = assign(before, fresh_centroids(before, 8, seed=1)).rows
    start = choose_start(after, 8, mean_directions(user_sums(after, old, 8)), seed=2)
    assert (start.clusters_started_from, start.reason) == (PARENT, KEPT)
    assert start.excess_inertia is not None
    assert start.excess_inertia <= WORSE

    def agreement(centroids: NDArray[np.float32]) -> float:
        return adjusted_rand_index(contingency(assign(after, centroids).rows, old, (8, 8)))

    assert agreement(start.centroids_KD) > 0.8 > agreement(fresh_centroids(after, 8, seed=2))


def test_a_parent_that_missed_a_group_is_left() -> None:
    """Two of four groups share a cluster of the parent, and a group of it has two: k-means cannot mend that."""
    vectors, groups = blobs(4, 100, width=8)
    old = np.array([0, 1, 2, 2])[groups]
    old[np.flatnonzero(groups == 0)[::2]] = 3
    start = choose_start(vectors, 4, mean_directions(user_sums(vectors, old, 4)), seed=2)
    assert (start.clusters_started_from, start.reason) == (FRESH, FITS_WORSE)
    assert start.excess_inertia is not None
    assert start.excess_inertia > WORSE


def test_no_more_steps_are_taken_than_the_fit_needs() -> None:
    vectors, groups = blobs(3, 100)
    assert choose_start(vectors, 3, mean_directions(user_sums(vectors, groups, 3)), seed=2).steps == 0
    mixed = np.where(np.arange(300) % 3 == 0, (groups + 1) % 3, groups)  # a third of each was elsewhere
    mended = choose_start(vectors, 3, mean_directions(user_sums(vectors, mixed, 3)), seed=2)
    assert (mended.clusters_started_from, mended.steps) == (PARENT, 1)


@pytest.mark.parametrize(
    ("parent", "reason"),
    [
        (None, NO_PARENT),
        (np.empty((0, 1), np.float32), NO_PARENT),
        (np.eye(2, 16, dtype=np.float32), NUMBER_CHANGED),
    ],
)
def test_without_a_parent_of_that_number_the_start_is_fresh(parent: NDArray[np.float32] | None, reason: str) -> None:
    vectors, _ = blobs(3, 20)
    start = choose_start(vectors, 3, parent, seed=2)
    assert (start.clusters_started_from, start.reason, start.excess_inertia) == (FRESH, reason, None)
    assert "centroids_KD" not in start.to_dict()


def test_a_cluster_whose_users_are_gone_is_no_start() -> None:
    vectors, groups = blobs(3, 20)
    vectors[groups == 1] = 0
    centroids = mean_directions(user_sums(vectors, groups, 3))
    assert assign(vectors, centroids).rows.tolist() == [{0: 0, 1: -1, 2: 1}[group] for group in groups.tolist()]


@given(st.integers(0, 60))
def test_the_sums_of_blocks_add_up_to_those_of_all(cut: int) -> None:
    vectors, groups = blobs(3, 20)
    parts = user_sums(vectors[:cut], groups[:cut], 3) + user_sums(vectors[cut:], groups[cut:], 3)
    np.testing.assert_allclose(parts, user_sums(vectors, groups, 3), atol=1e-9)


def test_fresh_centroids_stand_in_the_order_of_their_users() -> None:
    vectors, groups = blobs(3, 40)
    few = vectors[(groups != 0) | (np.arange(120) % 4 == 0)]
    counts = block_statistics(few, fresh_centroids(few, 3, seed=1)).counts_K.tolist()
    assert counts == sorted(counts, reverse=True)
    assert fresh_centroids(few, 0, seed=1).shape == (0, 16)
