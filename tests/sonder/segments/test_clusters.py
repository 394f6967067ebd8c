"""Spherical k-means: as good as scikit-learn's, additive over blocks, the same alone and in a batch."""

from __future__ import annotations

from functools import reduce
from operator import add

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.cluster import KMeans, MiniBatchKMeans

from sonder.core.errors import ArtefactMismatch
from sonder.core.storage import Folder
from sonder.segments.cluster_matching import adjusted_rand_index, contingency
from sonder.segments.clusters import (
    CLUSTER_SCHEMA,
    CLUSTERS_FILE,
    Clusters,
    assign,
    block_statistics,
    cluster_table,
    fit_sample,
    has_settled,
    moved_centroids,
    seed_centroids,
    unit_rows,
)
from tests.blobs import blobs

TWO = Clusters(np.eye(2, 3, dtype=np.float32), (4, 9), ("garden", "kitchen"))


def inertia_of(vectors: np.ndarray, centroids: np.ndarray) -> float:
    return float((1 - assign(vectors, unit_rows(centroids).astype(np.float32)).similarity).sum())


@pytest.mark.parametrize("spread", [0.1, 0.3])
def test_the_inertia_is_that_of_scikit_learn(spread: float) -> None:
    vectors, _ = blobs(8, 250, spread=spread)
    centroids, inertia = fit_sample(vectors, 8, seed=1)
    theirs = KMeans(8, n_init=4, random_state=1).fit(vectors).cluster_centers_
    batched = MiniBatchKMeans(8, n_init=4, random_state=1, batch_size=1024).fit(vectors).cluster_centers_
    own = inertia_of(vectors, centroids)
    assert own == pytest.approx(inertia, rel=1e-3)
    assert own <= 1.01 * inertia_of(vectors, theirs)
    assert own <= 1.01 * inertia_of(vectors, batched)


def test_known_groups_come_back() -> None:
    vectors, groups = blobs(6, 100)
    centroids, _ = fit_sample(vectors, 6, seed=2)
    assert adjusted_rand_index(contingency(assign(vectors, centroids).rows, groups, (6, 6))) > 0.99


@given(st.lists(st.integers(0, 199), min_size=1, max_size=4, unique=True))
def test_the_statistics_of_blocks_add_up_to_those_of_all(cuts: list[int]) -> None:
    vectors, _ = blobs(4, 50)
    centroids = seed_centroids(vectors, 4, np.random.default_rng(0))
    whole = block_statistics(vectors, centroids)
    blocks = np.split(vectors, sorted(cuts))
    summed = reduce(add, (block_statistics(block, centroids) for block in blocks))
    assert summed.counts_K.tolist() == whole.counts_K.tolist()
    assert summed.inertia == pytest.approx(whole.inertia)
    assert summed.sums_KD == pytest.approx(whole.sums_KD)
    assert summed.far_distances_F == pytest.approx(whole.far_distances_F, abs=1e-6)


def test_passes_over_blocks_end_where_the_fit_in_memory_ends() -> None:
    vectors, _ = blobs(5, 200, spread=0.3)
    _, inertia = fit_sample(vectors, 5, seed=4)
    centroids, inertias = fit_sample(vectors[:200], 5, seed=4)[0], []
    while not has_settled(inertias):
        statistics = reduce(add, (block_statistics(block, centroids) for block in np.split(vectors, 4)))
        centroids = moved_centroids(statistics, centroids)
        inertias.append(statistics.inertia)
    assert inertias == sorted(inertias, reverse=True)
    assert inertias[-1] == pytest.approx(inertia, rel=0.01)


def test_an_empty_cluster_starts_again_at_the_user_who_fits_worst() -> None:
    vectors = np.array([[1, 0], [1, 0.1], [0, 1]], np.float32)
    centroids = np.array([[1, 0], [-1, 0]], np.float32)
    moved = moved_centroids(block_statistics(vectors, centroids), centroids)
    assert moved[1].tolist() == pytest.approx([0, 1])


def test_without_a_vector_there_is_no_cluster() -> None:
    vectors = np.array([[0, 2, 0], [0, 0, 0], [3, 1, 0]], np.float32)
    table = cluster_table(pa.array(["a", "b", "c"]), vectors, TWO)
    assert table.schema.equals(CLUSTER_SCHEMA)
    assert table.column("cluster_id").to_pylist() == [9, None, 4]
    assert table.column("similarity").to_pylist() == [pytest.approx(1), None, pytest.approx(3 / 10**0.5)]
    assert table.column("margin").to_pylist() == [pytest.approx(1), None, pytest.approx(2 / 10**0.5)]


def test_one_cluster_has_no_second_and_no_clusters_take_nobody() -> None:
    vectors = np.ones((2, 3), np.float32)
    alone = Clusters(TWO.centroids_KD[:1], (4,), ("garden",))
    assert cluster_table(pa.array(["a", "b"]), vectors, alone).column("margin").null_count == 2
    none = Clusters(TWO.centroids_KD[:0], (), ())
    assert cluster_table(pa.array(["a", "b"]), vectors, none).column("cluster_id").null_count == 2


@given(st.integers(0, 99), st.integers(1, 100))
def test_a_user_alone_is_where_a_batch_puts_it(user: int, size: int) -> None:
    vectors, _ = blobs(4, 25, spread=0.5)
    centroids = vectors[:6]
    together, alone = assign(vectors[:size], centroids), assign(vectors[user : user + 1], centroids)
    if user < size:
        assert together.rows[user] == alone.rows[0]
        assert together.similarity[user] == pytest.approx(alone.similarity[0], abs=1e-12)


def test_fewer_different_vectors_than_clusters_give_fewer_clusters() -> None:
    assert len(fit_sample(np.repeat(np.eye(2, 4, dtype=np.float32), 30, axis=0), 5, seed=1)[0]) == 2
    with pytest.raises(ValueError, match="no vector"):
        fit_sample(np.zeros((3, 2), np.float32), 2, seed=1)


def test_what_was_saved_is_loaded_and_halves_are_refused(tmp_path) -> None:
    folder = Folder.at(str(tmp_path))
    TWO.save(folder)
    entries = [{"id": cluster_id, "name": name} for cluster_id, name in TWO.name_of.items()]
    (folder / CLUSTERS_FILE).write_json({"clusters": entries})
    loaded = Clusters.load(folder)
    assert (loaded.ids, loaded.names, loaded.centroids_KD.tolist()) == (TWO.ids, TWO.names, TWO.centroids_KD.tolist())
    (folder / CLUSTERS_FILE).write_json({"clusters": entries[:1]})
    with pytest.raises(ArtefactMismatch, match="2 centroids and describes 1 clusters"):
        Clusters.load(folder)
