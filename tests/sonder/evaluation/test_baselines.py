from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from sonder.evaluation import baselines, item_knn
from sonder.evaluation.baselines import Popularity
from sonder.evaluation.item_knn import ItemKnn, KnnSettings
from sonder.history.timelines import Timelines
from sonder.history.vocabulary import Vocabulary
from sonder.retrieval import exact

Make = Callable[[dict[str, list[Any]]], Timelines]
Words = Callable[..., Vocabulary]


def test_popularity_counts_wanted_events_and_breaks_ties_by_index(timelines: Make, vocabulary: Words) -> None:
    history = timelines({"a": [(2, 0), (2, 1), (3, 2, 1), (3, 3, 1), (3, 4, 1)], "b": [(1, 0), (3, 1, 2), (-1, 2)]})
    fitted = Popularity.fit(history, vocabulary(4), window_days=None)
    assert fitted.top(history, 4, exclude_seen=False).tolist() == [[2, 1, 0, 3]] * 2


def test_a_window_forgets_what_was_popular_long_ago(timelines: Make, vocabulary: Words) -> None:
    history = timelines({"a": [(0, 0), (0, 1), (0, 2), (1, 100)], "b": [(2, 0), (2, 1)]})
    words = vocabulary(3)
    assert Popularity.fit(history, words, window_days=None).order_I.tolist() == [0, 2, 1]
    assert Popularity.fit(history, words, window_days=7).order_I.tolist() == [1, 0, 2]  # then by all time


@pytest.mark.parametrize("chunk_bytes", [4 * 5, exact.CHUNK_BYTES])
def test_popularity_skips_what_each_user_had(
    timelines: Make, vocabulary: Words, monkeypatch: pytest.MonkeyPatch, chunk_bytes: int
) -> None:
    monkeypatch.setattr(exact, "CHUNK_BYTES", chunk_bytes)
    history = timelines(
        {"a": [(0, 0), (0, 1), (1, 2), (-1, 3)], "b": [], "c": [(4, 0), (3, 1), (2, 2), (1, 3), (0, 4)]}
    )
    fitted = baselines.Popularity(np.array([4, 3, 2, 1, 0]))
    assert fitted.top(history, 3, exclude_seen=True).tolist() == [[4, 3, 2], [4, 3, 2], [-1, -1, -1]]


def test_popularity_of_a_catalogue_smaller_than_the_list_leaves_places_empty(timelines: Make) -> None:
    fitted = Popularity(np.array([1, 0]))
    history = timelines({"a": [(1, 0)]})
    assert fitted.top(history, 3, exclude_seen=False).tolist() == [[1, 0, -1]]
    assert fitted.top(history, 3, exclude_seen=True).tolist() == [[0, -1, -1]]


def crowd(timelines: Make) -> Timelines:
    """0 and 1 always together, 2 and 3 always together, 4 once with 0."""
    return timelines(
        {
            "a": [(0, 0), (1, 1)],
            "b": [(1, 0), (0, 1)],
            "c": [(2, 0), (3, 1)],
            "d": [(3, 0), (2, 1), (2, 2)],
            "e": [(4, 0), (0, 1)],
        }
    )


def test_neighbours_are_cosines_of_who_had_both(timelines: Make, vocabulary: Words) -> None:
    knn = ItemKnn.fit(crowd(timelines), vocabulary(6))
    place = {int(item): column for column, item in enumerate(knn.order_I)}
    row = place[0]
    known = knn.neighbours_IN[row] >= 0
    found = dict(zip(knn.order_I[knn.neighbours_IN[row][known]].tolist(), knn.similarities_IN[row][known], strict=True))
    assert found == {1: pytest.approx(2 / np.sqrt(3 * 2)), 4: pytest.approx(1 / np.sqrt(3 * 1))}
    assert (knn.neighbours_IN[place[5]] == -1).all()  # nobody had it


def test_it_recommends_what_goes_with_the_history_then_what_is_popular(timelines: Make, vocabulary: Words) -> None:
    knn = ItemKnn.fit(crowd(timelines), vocabulary(6))
    asked = timelines({"x": [(2, 0)], "y": [(1, 0, 1)], "z": []})
    order = knn.order_I.tolist()
    lists = knn.top(asked, 6, exclude_seen=True).tolist()
    assert lists[0] == [3] + [item for item in order if item not in (2, 3)] + [-1]
    assert lists[1] == [item for item in order if item != 1] + [-1]  # an impression is seen but says nothing
    assert lists[2] == order


def test_keeping_self_similarity_puts_the_own_item_first(timelines: Make, vocabulary: Words) -> None:
    knn = ItemKnn.fit(crowd(timelines), vocabulary(6))
    asked = timelines({"x": [(0, 0)]})
    with_self = knn.with_settings(KnnSettings(keeps_self=True)).top(asked, 2, exclude_seen=False)
    without = knn.with_settings(KnnSettings(keeps_self=False)).top(asked, 2, exclude_seen=False)
    assert with_self.tolist() == [[0, 1]]
    assert without.tolist() == [[1, 4]]


def test_a_half_life_lets_the_newest_event_decide(timelines: Make, vocabulary: Words) -> None:
    knn = ItemKnn.fit(crowd(timelines), vocabulary(6))
    asked = timelines({"x": [(0, 0), (4, 1), (2, 2)]})  # 1 goes with 0, 3 goes with 2
    even = knn.with_settings(KnnSettings(half_life_events=None, keeps_self=False))
    recent = knn.with_settings(KnnSettings(half_life_events=0.5, keeps_self=False))
    assert even.top(asked, 1, exclude_seen=True).tolist() == [[3]]  # cosine 1.0 against 0.82
    oldest_first = timelines({"x": [(2, 0), (4, 1), (0, 2)]})
    assert recent.top(oldest_first, 1, exclude_seen=True).tolist() == [[1]]


def test_a_setting_reads_only_its_number_of_neighbours(timelines: Make, vocabulary: Words) -> None:
    knn = ItemKnn.fit(crowd(timelines), vocabulary(6)).with_settings(KnnSettings(neighbours=1, keeps_self=False))
    lists = knn.top(timelines({"x": [(0, 0)]}), 6, exclude_seen=True).tolist()
    order = [item for item in knn.order_I.tolist() if item not in (0, 1)]
    assert lists == [[1, *order, -1]]  # 4 is only the second neighbour of 0: no score, so by popularity


def test_chunks_do_not_change_neighbours_or_lists(
    timelines: Make, vocabulary: Words, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(5)
    log = timelines({f"u{u}": [(int(item), day) for day, item in enumerate(rng.integers(0, 30, 9))] for u in range(60)})
    words = vocabulary(30)
    whole = ItemKnn.fit(log, words)
    lists = whole.top(log, 10, exclude_seen=True)
    monkeypatch.setattr(exact, "CHUNK_BYTES", 4 * 30 * 4)
    parts = ItemKnn.fit(log, words)
    np.testing.assert_array_equal(whole.neighbours_IN, parts.neighbours_IN)
    np.testing.assert_array_equal(whole.similarities_IN, parts.similarities_IN)
    np.testing.assert_array_equal(lists, parts.top(log, 10, exclude_seen=True))


def test_item_knn_agrees_with_a_dense_reference(timelines: Make, vocabulary: Words) -> None:
    rng = np.random.default_rng(11)
    log = timelines({f"u{u}": [(int(item), day) for day, item in enumerate(rng.integers(0, 12, 5))] for u in range(40)})
    knn = ItemKnn.fit(log, vocabulary(12)).with_settings(KnnSettings(500, 3.0, False))
    had = np.zeros((40, 12))
    weight = np.zeros((40, 12))
    for user in range(40):
        for age, item in enumerate(log.items[log.offsets[user] : log.offsets[user + 1]][::-1]):
            had[user, item] = 1
            weight[user, item] = max(weight[user, item], 2 ** (-age / 3))
    norm = np.sqrt(had.sum(axis=0))
    cosine = (had.T @ had) / np.outer(norm, norm)
    np.fill_diagonal(cosine, 0)
    scores = np.where(had > 0, -np.inf, weight @ cosine)
    lists = knn.top(log, 4, exclude_seen=True)
    np.testing.assert_allclose(
        np.take_along_axis(scores, lists.astype(np.int64), axis=1), -np.sort(-scores, axis=1)[:, :4], rtol=1e-5
    )


def test_a_history_without_wanted_events_still_fits(timelines: Make, vocabulary: Words) -> None:
    shown = timelines({"a": [(0, 0, 1)]})
    knn = ItemKnn.fit(shown, vocabulary(3))
    assert knn.top(shown, 3, exclude_seen=False).tolist() == [[0, 1, 2]]


def test_the_grid_is_stated_and_small() -> None:
    assert len(KnnSettings.grid(with_self=(True, False))) == 2 * len(item_knn.NEIGHBOURS) * len(
        item_knn.HALF_LIVES_EVENTS
    )
