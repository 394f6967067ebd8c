from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from sonder.evaluation.ranking import (
    EmbeddingRanker,
    evaluate_ranking,
    p90_coverage,
    score_lists,
    scored_users,
    take_users,
    unscored_users,
)
from sonder.history.cutoffs import Split
from sonder.history.timelines import Timelines

Make = Callable[[dict[str, list[Any]]], Timelines]


@dataclass(frozen=True)
class FixedLists:
    """A ranker with its answers written down."""

    all_items: list[list[int]]
    new_items: list[list[int]]

    def top(self, history: Timelines, k: int, *, exclude_seen: bool) -> NDArray[np.int32]:
        lists = self.new_items if exclude_seen else self.all_items
        return np.asarray([row[:k] + [-1] * (k - len(row)) for row in lists], dtype=np.int32)


def test_hit_rate_and_ndcg_of_a_hand_computed_example(timelines: Make) -> None:
    split = Split(
        history=timelines({"a": [(9, 0)], "b": [(9, 0)], "c": [(9, 0)]}),
        targets=timelines({"a": [(1, 1), (1, 2), (2, 3)], "b": [(5, 1)], "c": []}),
    )
    lists = np.array([[3, 1, 4], [6, 7, 8], [1, 2, 3]], dtype=np.int32)
    per_user = score_lists(lists, split, 10, unseen=False)
    assert per_user.hit_U[:2].tolist() == [1.0, 0.0]
    assert math.isnan(per_user.hit_U[2])  # nothing to predict, not counted
    ideal = 1 + 1 / math.log2(3)  # two distinct targets, the repeated one counts once
    assert per_user.ndcg_U[0] == pytest.approx((1 / math.log2(3)) / ideal)
    assert (per_user.hit_rate, per_user.num_users) == (0.5, 2)


def test_the_ideal_of_a_user_with_more_targets_than_places_is_a_full_list(timelines: Make) -> None:
    split = Split(timelines({"a": [(9, 0)]}), timelines({"a": [(0, 1), (1, 1), (2, 1), (3, 1)]}))
    assert score_lists(np.int32([[3, 2]]), split, 10, unseen=False).ndcg == pytest.approx(1.0)


def test_a_target_outside_the_vocabulary_stays_a_target_and_is_a_miss(timelines: Make) -> None:
    split = Split(timelines({"a": [(0, 0)], "b": [(0, 0)]}), timelines({"a": [(-1, 1)], "b": [(-1, 1), (2, 1)]}))
    per_user = score_lists(np.int32([[1, -1], [2, -1]]), split, 3, unseen=False)
    assert per_user.hit_U.tolist() == [0.0, 1.0]
    assert per_user.ndcg_U[1] < 1.0  # the unknown target keeps its place in the ideal


def test_unseen_drops_known_targets_and_the_users_who_have_no_other(timelines: Make) -> None:
    split = Split(
        history=timelines({"a": [(1, 0)], "b": [(1, 0)], "c": [(-1, 0)]}),
        targets=timelines({"a": [(1, 1)], "b": [(1, 1), (2, 1)], "c": [(-1, 1)]}),
    )
    per_user = score_lists(np.int32([[1], [2], [1]]), split, 5, unseen=True)
    assert math.isnan(per_user.hit_U[0])
    assert per_user.hit_U[1:].tolist() == [1.0, 0.0]  # an unknown item may be new: it counts, as a miss
    assert per_user.ndcg_U[1] == pytest.approx(1.0)  # one target is left and it stands first


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_the_metrics_agree_with_a_readable_reference(data: st.DataObject) -> None:
    num_items, k = 8, 4
    users = data.draw(st.integers(1, 5))
    some_items = st.lists(st.integers(0, num_items - 1), max_size=6)
    targets = [data.draw(some_items) for _ in range(users)]
    seen = [data.draw(some_items) for _ in range(users)]
    lists = [data.draw(st.permutations(range(num_items)))[:k] for _ in range(users)]
    unseen = data.draw(st.booleans())
    per_user = score_lists(np.asarray(lists, np.int32), Split(flat(seen), flat(targets)), num_items, unseen=unseen)
    for user in range(users):
        wanted = set(targets[user]) - (set(seen[user]) if unseen else set())
        if not wanted:
            assert math.isnan(per_user.hit_U[user])
            assert math.isnan(per_user.ndcg_U[user])
            continue
        dcg = sum(1 / math.log2(place + 2) for place, item in enumerate(lists[user]) if item in wanted)
        ideal = sum(1 / math.log2(place + 2) for place in range(min(len(wanted), k)))
        assert per_user.hit_U[user] == float(dcg > 0)
        assert per_user.ndcg_U[user] == pytest.approx(dcg / ideal)


def flat(item_lists: list[list[int]]) -> Timelines:
    import pyarrow as pa

    lengths = [len(items) for items in item_lists]
    num = sum(lengths)
    return Timelines(
        user_ids=pa.array([str(row) for row in range(len(item_lists))]),
        offsets=np.concatenate(([0], np.cumsum(lengths))).astype(np.int64),
        items=np.asarray([item for items in item_lists for item in items], dtype=np.int32),
        actions=np.zeros(num, np.int16),
        surfaces=np.full(num, -1, np.int16),
        times_us=np.zeros(num, np.int64),
        values=np.full(num, np.nan),
    )


@pytest.mark.parametrize(
    ("lists", "expected"),
    [
        ([[0]] * 9 + [[1]], 1 / 20),  # one item fills exactly 90 %
        ([[0]] * 8 + [[1]] * 2, 2 / 20),
        ([[i] for i in range(10)], 9 / 20),
        ([[0, -1]] * 4, 1 / 20),  # an empty place is no recommendation
        ([[-1, -1]], 0.0),
    ],
)
def test_p90_coverage_is_the_smallest_share_of_items_that_fills_nine_places_of_ten(
    lists: list[list[int]], expected: float
) -> None:
    assert p90_coverage(np.asarray(lists, dtype=np.int32), 20) == pytest.approx(expected)


def test_all_five_metrics_come_from_the_right_lists(timelines: Make) -> None:
    split = Split(timelines({"a": [(1, 0)]}), timelines({"a": [(1, 1), (2, 1)]}))
    metrics = evaluate_ranking(FixedLists([[1, 3]], [[3, 2]]), split, 4)
    assert metrics["hr_at_10"] == 1.0
    assert metrics["ndcg_at_10"] == pytest.approx(1 / (1 + 1 / math.log2(3)))
    assert metrics["hr_at_10_unseen"] == 1.0
    assert metrics["ndcg_at_10_unseen"] == pytest.approx(1 / math.log2(3))
    assert metrics["p90_coverage_at_10"] == pytest.approx(2 / 4)


def test_a_vector_of_zeros_is_neither_recommended_nor_given_recommendations(timelines: Make) -> None:
    ranker = EmbeddingRanker(np.float32([[1, 0], [0, 0]]), np.float32([[-1, 0], [0, 0], [0.5, 0]]))
    history = timelines({"a": [(0, 0)], "b": [(0, 0)]})
    assert ranker.top(history, 3, exclude_seen=False).tolist() == [[2, 0, -1], [-1, -1, -1]]
    assert ranker.top(history, 3, exclude_seen=True).tolist() == [[2, -1, -1], [-1, -1, -1]]
    with pytest.raises(ValueError, match="user vectors"):
        ranker.top(timelines({"a": []}), 3, exclude_seen=False)


def test_users_are_sampled_by_their_id_and_not_by_their_place(timelines: Make) -> None:
    names = [f"user {number}" for number in range(50)]
    one = timelines({name: [(0, 0)] for name in names})
    other = timelines({name: [(0, 0)] for name in reversed(names)})
    picked = scored_users(Split(one, one), 10)
    again = scored_users(Split(other, other), 10)
    assert len(picked) == 10
    assert {names[row] for row in picked} == {names[::-1][row] for row in again}
    assert picked.tolist() == sorted(picked)


def test_only_users_with_a_history_and_a_target_are_scored(timelines: Make) -> None:
    split = Split(
        timelines({"a": [(0, 0)], "b": [], "c": [(0, 0)]}), timelines({"a": [], "b": [(1, 1)], "c": [(1, 1)]})
    )
    assert scored_users(split, 10).tolist() == [2]
    assert take_users(split, np.array([2])).targets.items.tolist() == [1]


def test_cold_users_and_those_who_only_refused_are_measured_apart(timelines: Make) -> None:
    split = Split(
        history=timelines({"cold": [], "hid": [(0, 0)], "scored": [(0, 0)], "quiet": [(0, 0)], "cold hid": []}),
        targets=timelines({"cold": [(1, 1)], "hid": [], "scored": [(1, 1)], "quiet": [], "cold hid": []}),
        unwanted=timelines({"cold": [], "hid": [(2, 1, 2)], "scored": [(2, 1, 2)], "quiet": [], "cold hid": [(2, 1)]}),
    )
    assert unscored_users(split, 10).tolist() == [0, 1]
    taken = take_users(split, np.array([1, 2])).unwanted
    assert taken is not None
    assert taken.lengths.tolist() == [1, 1]
    assert unscored_users(Split(split.history, split.targets), 10).tolist() == [0]
    assert take_users(Split(split.history, split.targets), np.array([0])).unwanted is None


def test_where_the_scored_are_sampled_the_cold_are_sampled_by_the_same_digest(timelines: Make) -> None:
    cold = {f"cold {number}": [] for number in range(200)}
    warm = {f"warm {number}": [(0, 0)] for number in range(200)}
    split = Split(timelines({**cold, **warm}), timelines({name: [(1, 1)] for name in [*cold, *warm]}))
    half = unscored_users(split, 100)
    assert 70 < len(half) < 130  # a share like that of the scored
    assert set(unscored_users(split, 50).tolist()) < set(half.tolist())
    assert len(unscored_users(split, 200)) == 200
