"""Several queries of one user share a budget: in turns, each item once, nobody starves."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from sonder.retrieval.exact import top_items
from sonder.retrieval.several import Queries, in_turns, several_items
from tests.tiny_log import timelines_of

AXES = np.eye(4, dtype=np.float32)
ITEMS = np.array([[1, 0], [0.9, 0.1], [0, 1], [0.1, 0.9], [0.2, 0.8], [0.7, 0.3]], np.float32)


def merged(lists: list[list[int]], weights: list[float], budget: int) -> list[int]:
    found = np.array(lists, dtype=np.int32)
    return in_turns(found, np.zeros(len(found), np.int64), np.array(weights), 1, budget)[0].tolist()


def test_equal_weights_take_turns_and_an_item_is_a_candidate_once() -> None:
    assert merged([[0, 1, 2], [3, 1, 4]], [1, 1], 5) == [0, 3, 1, 2, 4]


def test_twice_the_weight_gives_twice_the_candidates() -> None:
    assert merged([[0, 1, 2, 3], [10, 11, 12, 13]], [2, 1], 6) == [0, 1, 10, 2, 3, 11]


def test_a_list_that_ends_leaves_its_turns_to_the_others() -> None:
    assert merged([[0, -1, -1], [10, 11, 12]], [9, 1], 4) == [0, 10, 11, 12]
    assert merged([[0, -1, -1], [0, -1, -1]], [1, 1], 3) == [0, -1, -1]


def by_hand(lists: list[list[int]], weights: list[float], budget: int) -> list[int]:
    """The docstring of retrieval.several, turn by turn."""
    turns = [
        ((place + 1) / weight, -weight, item)
        for items, weight in zip(lists, weights, strict=True)
        for place, item in enumerate(items)
    ]
    taken: list[int] = []
    for _, _, item in sorted(turns):
        if item not in taken:
            taken.append(item)
    return [*taken, *([-1] * budget)][:budget]


ranked = st.permutations(range(8)).map(lambda items: list(items)[:4])


@given(st.lists(st.tuples(ranked, st.sampled_from([0.25, 0.5, 1.0, 3.0])), min_size=1, max_size=4), st.integers(1, 10))
def test_the_merge_is_that_of_a_plain_reading(queries: list[tuple[list[int], float]], budget: int) -> None:
    lists, weights = [list(part) for part in zip(*queries, strict=True)]
    assert merged(lists, weights, budget) == by_hand(lists, weights, budget)  # type: ignore[arg-type]


def queries_of(users: list[int], vectors: NDArray[np.float32], weights: list[float]) -> Queries:
    return Queries(np.array(users), vectors, np.array(weights, dtype=float))


def test_one_query_a_user_is_the_plain_search() -> None:
    draw = np.random.default_rng(3)
    users, items = (draw.normal(size=(num, 4)).astype(np.float32) for num in (7, 30))
    found = several_items(Queries(np.arange(7), users, np.full(7, 0.3)), 7, items, 5)
    assert found.tolist() == top_items(users, items, 5)[0].tolist()


def test_users_get_their_own_candidates_without_what_they_had_and_none_without_a_query() -> None:
    queries = queries_of([2, 0, 2], np.array([[1, 0], [1, 0], [0, 1]], np.float32), [3, 1, 1])
    had = timelines_of({"ann": [(1, 0, "buy")], "bob": [], "cid": [(1, 2, "buy")]})
    allowed = np.array([True, False, True, True, True, True])
    found = several_items(queries, 3, ITEMS, 3, allowed_I=allowed, exclude=had)
    assert found.tolist() == [[5, 4, 3], [-1, -1, -1], [0, 5, 4]]  # at one turn the heavier query's item


def test_the_long_term_vector_gets_its_share_of_the_turns_beside_the_others() -> None:
    interests = queries_of([0, 0], AXES[:2], [6.0, 2.0])
    both = interests.beside(AXES[2:], 0.5)
    keys = zip(both.users_Q.tolist(), both.vectors_QD.argmax(axis=1).tolist(), strict=True)
    shares = dict(zip(keys, both.weights_Q.tolist(), strict=True))
    assert shares == {(0, 0): 0.375, (0, 1): 0.125, (0, 2): 0.5, (1, 3): 0.5}


def test_a_vector_of_zeros_asks_nothing() -> None:
    both = queries_of([0], AXES[:1], [1.0]).beside(np.zeros((2, 4), np.float32), 0.5)
    assert both.users_Q.tolist() == [0]


def test_what_cannot_be_merged_is_refused() -> None:
    queries = queries_of([0], AXES[:1], [0.0])
    with pytest.raises(ValueError, match="weights above 0"):
        several_items(queries, 1, AXES, 2)
    with pytest.raises(ValueError, match="share is 1"):
        queries.beside(AXES, 1)
    with pytest.raises(ValueError, match="one for each of 1 users"):
        several_items(queries_of([0], AXES[:1], [1.0]), 1, AXES, 2, exclude=timelines_of({}))
    with pytest.raises(ValueError, match="budget is 0"):
        merged([[0]], [1], 0)
