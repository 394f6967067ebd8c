"""Two models on the same users: the interval holds what it promises, and pairing is what makes it narrow."""

import numpy as np
from scipy import stats

from sonder.evaluation.paired import LEAST_USERS, paired_difference, paired_slices


def test_it_is_the_paired_t_interval() -> None:
    rng = np.random.default_rng(1)
    was = rng.normal(size=200)
    now = was + rng.normal(0.1, 0.2, 200)
    found = paired_difference("x", was, now)
    assert found is not None
    wanted = stats.ttest_rel(now, was).confidence_interval(0.95)
    np.testing.assert_allclose((found.low, found.high), (wanted.low, wanted.high))
    assert found.judgement == "better"


def test_users_whom_one_model_does_not_know_are_left_out() -> None:
    was, now = np.arange(60.0), np.arange(60.0) + 1
    was[:10], now[10:20] = np.nan, np.nan
    found = paired_difference("x", was, now)
    assert found is not None
    assert (found.users, found.difference) == (40, 1.0)


def test_too_few_users_are_no_difference() -> None:
    few = np.zeros(LEAST_USERS - 1)
    assert paired_difference("x", few, few) is None


def test_equal_models_put_no_slice_at_risk_more_often_than_promised() -> None:
    rng, alarms, runs = np.random.default_rng(5), 0, 400
    codes = np.repeat(np.arange(6), 80)
    for _ in range(runs):
        was = rng.exponential(size=480)
        now = was + rng.normal(size=480)
        alarms += any(found.judgement != "even" for found in paired_slices(was, now, codes, [*"abcdef"]))
    assert stats.binomtest(alarms, runs, 0.05, alternative="greater").pvalue > 1e-3


def test_a_slice_that_got_worse_is_found() -> None:
    rng = np.random.default_rng(3)
    codes, was = np.repeat([0, 1], 300), rng.exponential(size=600)
    now = was + rng.normal(0.0, 0.3, 600) - np.where(codes == 1, 0.15, 0.0)
    assert [(s.name, s.judgement) for s in paired_slices(was, now, codes, ["a", "b"])] == [
        ("a", "even"),
        ("b", "worse"),
    ]
