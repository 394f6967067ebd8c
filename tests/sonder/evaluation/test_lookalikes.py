"""The held-out protocol of lookalikes, on rankings small enough to count by hand."""

from __future__ import annotations

import numpy as np
import pytest

from sonder.evaluation.lookalikes import evaluate_held_out, hits_at, largest_share, rank_quality
from sonder.segments.lookalike import People

MEMBERS = np.array([True, False, True, False])


def test_a_ranking_is_worth_what_counting_says() -> None:
    quality = rank_quality(np.array([4.0, 3.0, 2.0, 1.0]), MEMBERS, [1, 2, 4])
    assert quality.precision.tolist() == [1.0, 0.5, 0.5]
    assert quality.recall.tolist() == [0.5, 0.5, 1.0]
    assert quality.lift.tolist() == [2.0, 1.0, 1.0]
    assert quality.average_precision == pytest.approx((1 / 1 + 2 / 3) / 2)


def test_ties_are_worth_what_chance_gives() -> None:
    assert hits_at(np.zeros(4), MEMBERS, [1, 2]).tolist() == [0.5, 1.0]


def test_a_ranking_of_members_alone_is_refused() -> None:
    with pytest.raises(ValueError, match="all 2 users are members"):
        rank_quality(np.zeros(2), np.array([True, True]), [1])


def test_no_share_of_members_is_larger_than_the_surest_lift_allows() -> None:
    assert largest_share(np.array([3.0, 20.0]), np.array([50.0, 4.0])) == 0.25  # three seeds are no evidence


def people(num_seeds: int, shift: float) -> tuple[People, People]:
    draw = np.random.default_rng(5)
    vectors = draw.normal(size=(num_seeds + 600, 4)).astype(np.float32)
    features = draw.normal(size=(num_seeds + 600, 2)).astype(np.float32)
    features[:num_seeds, 0] += shift
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    everybody = People(vectors, features)
    return everybody.take(np.arange(num_seeds)), everybody.take(np.arange(num_seeds, num_seeds + 600))


def test_held_out_seeds_are_found_where_there_is_a_pattern_and_only_there() -> None:
    clear, none = (evaluate_held_out(*people(60, shift), shares=(0.1, 0.5)) for shift in (4.0, 0.0))
    assert clear.auc > 0.95
    assert 0.35 < none.auc < 0.65
    assert clear.points[0].lift > 5
    assert clear.points[0].recall <= clear.points[1].recall
    assert all(point.precision <= point.precision_at_most <= 1 for point in (*clear.points, *none.points))
    assert clear.average_precision_at_random == pytest.approx(60 / 660)


def test_among_ten_times_as_many_others_as_were_drawn_precision_is_that_much_lower() -> None:
    seeds, others = people(60, 4.0)
    drawn, all_of_them = (evaluate_held_out(seeds, others, num_others=num, shares=(0.1,)) for num in (None, 6_540))
    assert all_of_them.points[0].precision == pytest.approx(drawn.points[0].precision / 10)
    assert all_of_them.points[0].recall == drawn.points[0].recall
