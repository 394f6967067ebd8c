from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from sonder.history.timelines import Timelines
from sonder.retrieval import exact
from sonder.retrieval.exact import similar_users, top_items
from sonder.retrieval.selection import select_top


def histories(*item_lists: list[int]) -> Timelines:
    lengths = [len(items) for items in item_lists]
    num = sum(lengths)
    return Timelines(
        user_ids=pa.array([f"u{row}" for row in range(len(item_lists))], pa.string()),
        offsets=np.concatenate(([0], np.cumsum(lengths))).astype(np.int64),
        items=np.asarray([item for items in item_lists for item in items], dtype=np.int32),
        actions=np.zeros(num, dtype=np.int16),
        surfaces=np.full(num, -1, dtype=np.int16),
        times_us=np.arange(num, dtype=np.int64),
        values=np.full(num, np.nan),
    )


def reference(
    scores_UI: NDArray[np.float32], k: int, allowed: NDArray[np.bool_] | None, seen: list[list[int]]
) -> tuple[list[list[int]], list[list[float]]]:
    """One user, one item at a time: sort by falling score, then rising index."""
    all_indices, all_scores = [], []
    for user, row in enumerate(scores_UI.tolist()):
        left = [i for i in range(len(row)) if (allowed is None or allowed[i]) and i not in seen[user]]
        best = sorted(left, key=lambda i: (-row[i], i))[:k]
        all_indices.append(best + [-1] * (k - len(best)))
        all_scores.append([row[i] for i in best] + [-np.inf] * (k - len(best)))
    return all_indices, all_scores


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_the_fast_path_agrees_with_the_readable_one(data: st.DataObject) -> None:
    users, items, width = (data.draw(st.integers(1, n)) for n in (7, 12, 3))
    k = data.draw(st.integers(1, 14))
    numbers = st.integers(-2, 2)  # small integers: products are exact and ties are common
    queries = np.asarray(data.draw(st.lists(numbers, min_size=users * width, max_size=users * width)), np.float32)
    vectors = np.asarray(data.draw(st.lists(numbers, min_size=items * width, max_size=items * width)), np.float32)
    queries, vectors = queries.reshape(users, width), vectors.reshape(items, width)
    flags = data.draw(st.none() | st.lists(st.booleans(), min_size=items, max_size=items))
    allowed = None if flags is None else np.asarray(flags, dtype=np.bool_)
    item = st.integers(-1, items - 1)
    seen = data.draw(st.lists(st.lists(item, max_size=items), min_size=users, max_size=users))
    indices, scores = top_items(queries, vectors, k, allowed_I=allowed, exclude=histories(*seen))
    expected_indices, expected_scores = reference(queries @ vectors.T, k, allowed, seen)
    assert indices.tolist() == expected_indices
    assert scores.tolist() == expected_scores


def test_a_small_chunk_gives_the_same_answer_as_a_large_one(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(3)
    queries, items = rng.integers(-3, 4, (40, 4)).astype(np.float32), rng.integers(-3, 4, (30, 4)).astype(np.float32)
    seen = histories(*[rng.integers(0, 30, 6).tolist() for _ in range(40)])
    whole = top_items(queries, items, 5, exclude=seen)
    monkeypatch.setattr(exact, "CHUNK_BYTES", 4 * 30 * 7)  # seven rows
    parts = top_items(queries, items, 5, exclude=seen)
    np.testing.assert_array_equal(whole[0], parts[0])
    np.testing.assert_array_equal(whole[1], parts[1])


def test_an_excluded_item_does_not_come_back_when_all_others_score_below_zero() -> None:
    indices, scores = top_items(np.float32([[1.0]]), np.float32([[5.0], [-1.0], [-2.0]]), 3, exclude=histories([0]))
    assert indices.tolist() == [[1, 2, -1]]
    assert scores.tolist() == [[-1.0, -2.0, -np.inf]]


def test_read_only_and_strided_matrices_are_answered_like_their_copies() -> None:
    draw = np.random.default_rng(3)
    queries, others = (draw.normal(size=(6, 4)).astype(np.float32) for _ in range(2))
    locked, strided = others.copy(), np.asfortranarray(others)
    locked.setflags(write=False)
    frozen = queries.copy()
    frozen.setflags(write=False)
    for search in (top_items, similar_users):
        expected = search(queries, others, 3)
        for matrix in (locked, strided):
            for found, wanted in zip(search(frozen, matrix, 3), expected, strict=True):
                np.testing.assert_array_equal(found, wanted)


def test_no_query_and_no_item_give_empty_answers() -> None:
    nothing = np.zeros((0, 2), dtype=np.float32)
    assert top_items(nothing, np.ones((3, 2), np.float32), 2)[0].shape == (0, 2)
    assert top_items(np.ones((1, 2), np.float32), nothing, 2)[0].tolist() == [[-1, -1]]


def test_the_user_is_not_similar_to_the_user_and_minus_one_excludes_nobody() -> None:
    users = np.float32([[1, 0], [0.9, 0.1], [0, 1]])
    rows, scores = similar_users(users[:2], users, 2, exclude_rows=np.array([0, -1]))
    assert rows.tolist() == [[1, 2], [0, 1]]
    assert scores[0, 0] == pytest.approx(0.9)


@pytest.mark.parametrize(
    ("queries", "items", "match"),
    [
        (np.ones((1, 2), np.float32), np.ones((1, 3), np.float32), "same space"),
        (np.ones((1, 2), np.float64), np.ones((1, 2), np.float32), "float32 matrix"),
        (np.float32([[np.nan, 0]]), np.ones((1, 2), np.float32), "NaN"),
    ],
)
def test_a_malformed_question_is_refused(queries: NDArray[np.float32], items: NDArray[np.float32], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        top_items(queries, items, 1)


def test_masks_and_histories_must_fit_the_question() -> None:
    one = np.ones((2, 1), np.float32)
    with pytest.raises(ValueError, match="allowed_I"):
        top_items(one, one, 1, allowed_I=np.ones(3, np.bool_))
    with pytest.raises(ValueError, match="histories"):
        top_items(one, one, 1, exclude=histories([0]))
    with pytest.raises(ValueError, match="exclude_rows"):
        similar_users(one, one, 1, exclude_rows=np.array([0]))
    with pytest.raises(ValueError, match="at least 1"):
        top_items(one, one, 0)


def test_a_tie_across_the_last_place_goes_to_the_lowest_columns() -> None:
    scores = torch.full((1, 1000), 0.5)
    scores[0, 700] = 1.0
    columns, best = select_top(scores, 4)
    assert columns.tolist() == [[700, 0, 1, 2]]
    assert best.tolist() == [[1.0, 0.5, 0.5, 0.5]]
