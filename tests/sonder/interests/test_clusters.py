"""Blocks of users with few items, scipy's linkage and the chain for very many find the same clusters."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.cluster.hierarchy import fcluster, linkage

from sonder.interests import clusters
from sonder.interests.clusters import chain_merges, merge_many, ward_clusters

NO_BLOCKS = (1,)  # everybody with two items or more has too many for a block


def cloud(seed: int, size: int) -> NDArray[np.float32]:
    draw = np.random.default_rng(seed)
    centres = draw.normal(size=(3, 5))[draw.integers(0, 3, size)]
    vectors = centres + 0.4 * draw.normal(size=(size, 5))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def same_groups(left: NDArray[np.int64], right: NDArray[np.int64]) -> bool:
    return len(np.unique(np.column_stack([left, right]), axis=0)) == len(np.unique(left)) == len(np.unique(right))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 40), st.floats(0.05, 3.0))
def test_blocks_and_the_chain_cut_the_tree_that_scipy_builds(seed: int, size: int, distance: float) -> None:
    vectors, users, items = cloud(seed, size), np.zeros(size, np.int64), np.arange(size)
    heights = linkage(vectors.astype(float), "ward")[:, 2] if size > 1 else np.zeros(0)
    if np.abs(heights - distance).min(initial=1.0) < 1e-4:
        return  # on the cut itself, rounding decides
    in_a_block = ward_clusters(users, items, vectors, distance)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(clusters, "SMALL", NO_BLOCKS)
        assert same_groups(in_a_block, ward_clusters(users, items, vectors, distance))
        patch.setattr(clusters, "CHAIN_FROM", 2)
        assert same_groups(in_a_block, ward_clusters(users, items, vectors, distance))
    if size > 1:
        assert same_groups(in_a_block, fcluster(linkage(vectors.astype(float), "ward"), distance, "distance"))


def test_a_user_has_the_same_clusters_in_any_block_although_ties_are_many(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = np.random.default_rng(5)
    vectors = np.eye(6, dtype=np.float32)[draw.integers(0, 6, 400)]  # distances are 0 or the root of 2
    sizes = draw.integers(1, 49, 60)
    users = np.repeat(np.arange(60), sizes)
    items = np.concatenate([np.sort(draw.choice(400, size, replace=False)) for size in sizes])
    for distance in (0.5, np.sqrt(2), 1.6, 2.5):
        together = ward_clusters(users, items, vectors, float(distance))
        for user in range(60):
            here = users == user
            alone = ward_clusters(np.zeros(sizes[user], np.int64), items[here], vectors, float(distance))
            assert (together[here] - together[here].min()).tolist() == alone.tolist()
        monkeypatch.setattr(clusters, "BLOCK_PLACES", 48)
        assert np.array_equal(together, ward_clusters(users, items, vectors, float(distance)))
        monkeypatch.undo()


def test_places_without_an_item_stay_by_themselves() -> None:
    squared = np.full((2, 3, 3), np.inf)
    squared[0, :2, :2] = 0.01
    assert merge_many(squared, 0.2).tolist() == [[0, 0, 2], [0, 1, 2]]


def test_equal_items_merge_whatever_the_order_of_the_ties() -> None:
    vectors = np.repeat(np.eye(3, dtype=np.float32), 4, axis=0)
    merges = chain_merges(vectors, 0.01)
    assert len(merges) == 9
    assert (merges // 4 == merges[:, :1] // 4).all()


def test_users_never_share_a_cluster_and_long_ones_stand_beside_short_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clusters, "SMALL", (4,))
    monkeypatch.setattr(clusters, "CHAIN_FROM", 10)
    vectors = cloud(1, 30)
    users = np.repeat([0, 2, 3, 7], [4, 15, 1, 6])
    items = np.concatenate([np.arange(4), np.arange(15), [0], np.arange(6)])
    together = ward_clusters(users, items, vectors, 0.8)
    assert len(np.unique(np.column_stack([users, together]), axis=0)) == len(np.unique(together)) == together.max() + 1
    for user in (0, 2, 3, 7):
        here = users == user
        assert same_groups(together[here], ward_clusters(users[here], items[here], vectors, 0.8))


def test_nobody_has_no_clusters() -> None:
    nobody = np.zeros(0, np.int64)
    assert ward_clusters(nobody, nobody, cloud(0, 3), 1.0).tolist() == []


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.lists(st.integers(1, 12), min_size=1, max_size=8), st.floats(0.05, 3.0))
def test_clusters_are_numbered_as_they_first_appear(seed: int, sizes: list[int], distance: float) -> None:
    users, items = np.repeat(np.arange(len(sizes)), sizes), np.concatenate([np.arange(size) for size in sizes])
    found = ward_clusters(users, items, cloud(seed, max(sizes)), distance)
    firsts = np.unique(found, return_index=True)[1]
    assert found.dtype == np.int64
    assert found[firsts].tolist() == list(range(len(firsts)))
    assert (np.diff(firsts) > 0).all()
    for user in range(len(sizes)):
        alone = ward_clusters(np.zeros(sizes[user], np.int64), items[users == user], cloud(seed, max(sizes)), distance)
        assert (found[users == user] - found[users == user].min()).tolist() == alone.tolist()
