"""Who has no vector is measured by the list that he would be served, worked out by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from sonder.evaluation.baselines import Popularity
from sonder.evaluation.fallback import WithFallback
from sonder.evaluation.ranking import EmbeddingRanker
from sonder.history.timelines import Timelines
from sonder.history.vocabulary import Vocabulary
from sonder.retrieval import popular as module
from sonder.retrieval.popular import popular_order

Make = Callable[[dict[str, list[Any]]], Timelines]
Words = Callable[..., Vocabulary]
HIDE = 2


def popular(vocabulary: Vocabulary, counts: list[float]) -> Popularity:
    return Popularity(popular_order(np.asarray(counts), vocabulary.item_ids))


def test_the_most_popular_come_first_and_ties_go_by_id(vocabulary: Words) -> None:
    order = popular_order(np.array([0, 0, 2.0, 0, 0, 0, 0, 0, 0, 0, 2.0, 2.5]), vocabulary(12).item_ids).tolist()
    assert order[:3] == [11, 10, 2]  # "i10" stands before "i2"
    assert order[3:6] == [0, 1, 3]  # none at all: by id


def test_who_has_no_vector_gets_popular_items_and_nobody_else_does(timelines: Make, vocabulary: Words) -> None:
    history = timelines({"known": [(0, 0)], "hid": [(3, 1, HIDE)], "cold": [], "more": [(3, 2), (3, 3), (2, 4)]})
    users = np.float32([[1, 0], [0, 0], [0, 0], [0, 1]])
    items = np.float32([[1, 0], [0.5, 0], [0, 0], [0, 1]])
    served = WithFallback(EmbeddingRanker(users, items), popular(vocabulary(4), [1, 0, 1, 3]))
    assert served.top(history, 3, exclude_seen=False).tolist() == [[0, 1, 3], [3, 0, 2], [3, 0, 2], [3, 0, 1]]
    # "known" has two candidates left and is not filled up: serving does not either
    assert served.top(history, 3, exclude_seen=True).tolist() == [[1, 3, -1], [0, 2, 1], [3, 0, 2], [0, 1, -1]]


def test_who_has_had_every_item_with_a_vector_gets_popular_items_too(timelines: Make, vocabulary: Words) -> None:
    history = timelines({"a": [(0, 0), (1, 0)]})
    items = np.float32([[1, 0], [0, 1], [0, 0]])
    served = WithFallback(EmbeddingRanker(np.float32([[1, 0]]), items), popular(vocabulary(3), [1, 1, 0]))
    assert served.top(history, 2, exclude_seen=True).tolist() == [[2, -1]]


def test_only_so_many_popular_items_are_kept(
    timelines: Make, vocabulary: Words, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "NUM_POPULAR", 2)
    history = timelines({"a": [(2, 0), (2, 1), (1, 2)], "b": [(3, 0)], "c": []})
    kept = popular(vocabulary(4), [0, 1, 2, 1])
    assert kept.top(history, 3, exclude_seen=False).tolist() == [[2, 1, -1]] * 3
    assert kept.top(history, 3, exclude_seen=True).tolist() == [[-1, -1, -1], [2, 1, -1], [2, 1, -1]]
