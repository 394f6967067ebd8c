from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, roc_auc_score

from sonder.evaluation.ranked_rows import RankedRows, auc, average_precision, gini, lift_curve, top_share

LEVELS = st.sampled_from([0.0, 0.1, 0.25, 0.5, 1.0])
ROWS = st.lists(st.tuples(st.booleans(), LEVELS, st.integers(0, 3)), min_size=2, max_size=40)


@given(ROWS)
def test_weights_count_rows_as_often_as_copies_of_them_would(rows: list[tuple[bool, float, int]]) -> None:
    labels, scores, weights = (np.array(column, dtype=np.float64) for column in zip(*rows, strict=True))
    copies, copied = (np.repeat(values, weights.astype(int)) for values in (labels, scores))
    if not 0 < copies.sum() < len(copies):
        return
    ranked = RankedRows(scores)
    positives, counts = (ranked.by_level(values[ranked.order]) for values in (weights * labels, weights))
    assert auc(positives, counts) == pytest.approx(roc_auc_score(copies, copied))
    assert average_precision(positives, counts) == pytest.approx(average_precision_score(copies, copied))


def test_without_both_outcomes_there_is_no_order_to_measure() -> None:
    assert np.isnan(auc(np.array([0.0, 0.0]), np.array([1.0, 1.0])))
    assert np.isnan(average_precision(np.zeros(2), np.ones(2)))
    assert np.isnan(top_share(np.zeros(2), np.ones(2)))
    assert np.isnan(gini(np.zeros(2), np.ones(2)))


def test_the_best_share_takes_its_part_of_a_level_that_it_goes_through() -> None:
    # four rows at the top with two positives, six below with one: half of the top level is a fifth of all rows
    outcomes, weights = np.array([2.0, 1.0]), np.array([4.0, 6.0])
    assert top_share(outcomes, weights, 0.2) == pytest.approx(1 / 3)
    assert top_share(outcomes, weights, 0.4) == pytest.approx(2 / 3)
    assert top_share(outcomes, weights, 0.7) == pytest.approx(2.5 / 3)
    assert top_share(outcomes, weights, 1.0) == pytest.approx(1.0)


def test_gini_of_one_rich_user_in_four_is_three_quarters_when_it_stands_first() -> None:
    assert gini(np.array([8.0, 0, 0, 0]), np.ones(4)) == pytest.approx(0.75)
    assert gini(np.array([0.0, 0, 0, 8]), np.ones(4)) == pytest.approx(-0.75)
    assert gini(np.array([8.0]), np.array([4.0])) == pytest.approx(0.0)  # one level: no order at all


def test_lift_by_tenths_of_a_perfect_order() -> None:
    scores = np.arange(20) / 20
    points = lift_curve(scores >= 0.9, scores)
    assert [point.observed for point in points] == pytest.approx([1.0] + [0.0] * 9)
    assert [point.cumulative_share for point in points] == pytest.approx([1.0] * 10)
    assert points[0].predicted == pytest.approx((0.95 + 0.9) / 2)
    assert [point.users for point in points] == [2.0] * 10


def test_equal_scores_spread_what_came_over_all_tenths_whatever_the_order() -> None:
    for labels in ([1, 1, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 1, 1]):
        points = lift_curve(np.array(labels), np.full(7, 0.3))
        assert [point.observed for point in points] == pytest.approx([2 / 7] * 10)
        assert [point.predicted for point in points] == pytest.approx([0.3] * 10)


def test_without_an_outcome_no_share_is_told() -> None:
    assert {point.cumulative_share for point in lift_curve(np.zeros(5), np.arange(5.0))} == {None}
