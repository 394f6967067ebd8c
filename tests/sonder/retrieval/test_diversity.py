from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from sonder.retrieval.diversity import diversify

TWINS = np.array([[1, 0], [1, 0.01], [1, 0.02], [0, 1]], dtype=np.float32)


def chosen(diversity: float, k: int = 3, candidates: tuple[int, ...] = (0, 1, 2, 3)) -> list[int]:
    scores = np.array([[0.9, 0.8, 0.7, 0.1]], dtype=np.float32)[:, : len(candidates)]
    found = diversify(np.array([candidates], np.int32), scores, TWINS, k, np.array([diversity]))
    return [int(place) for place in found[0]]


def test_without_diversity_the_order_is_that_of_relevance() -> None:
    assert chosen(0.0) == [0, 1, 2]


def test_a_different_item_takes_the_place_of_a_twin() -> None:
    assert chosen(0.6) == [0, 3, 1]


def test_the_first_place_is_the_most_relevant_whatever_is_asked() -> None:
    assert chosen(1.0)[0] == 0


def test_where_candidates_end_so_does_the_list() -> None:
    assert chosen(0.5, k=3, candidates=(0, -1, 2)) == [0, 2, -1]


def test_more_than_all_difference_is_refused() -> None:
    with pytest.raises(ValueError, match="expected 0 to 1"):
        chosen(1.5)


def naive(
    candidates: list[int], relevance: NDArray[np.float32], items: NDArray[np.float32], k: int, share: float
) -> list[int]:
    """One user, one candidate at a time, as the paper writes it."""
    unit = items / np.linalg.norm(items, axis=1, keepdims=True)
    scaled = (relevance - relevance.min()) / (np.ptp(relevance) or 1.0)
    left, picked = list(range(len(candidates))), list[int]()
    while left and len(picked) < k:
        worth = [
            scaled[c] * (1 - share)
            - share * max((float(unit[candidates[c]] @ unit[candidates[p]]) for p in picked), default=0.0)
            if picked
            else scaled[c]
            for c in left
        ]
        picked.append(left.pop(int(np.argmax(worth))))
    return picked


@given(seed=st.integers(0, 1_000), share=st.sampled_from([0.0, 0.3, 0.7, 1.0]))
def test_a_batch_is_what_each_user_would_get_alone(seed: int, share: float) -> None:
    draw = np.random.default_rng(seed)
    items = draw.standard_normal((30, 5)).astype(np.float32)
    candidates = np.stack([draw.permutation(30)[:12] for _ in range(4)]).astype(np.int32)
    relevance = draw.random((4, 12)).astype(np.float32)
    found = diversify(candidates, relevance, items, 6, np.full(4, share))
    for user in range(4):
        alone = naive(candidates[user].tolist(), relevance[user], items, 6, share)
        assert found[user].tolist() == alone
