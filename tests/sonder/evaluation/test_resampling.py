from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binomtest

from sonder.evaluation.classification import evaluate_score
from sonder.evaluation.resampling import percentile_interval, resample, resampled_weights, share_interval


def test_every_resample_draws_as_many_users_as_there_are_and_keeps_a_users_rows_together() -> None:
    codes = np.array([0, 0, 1, 2, 2, 2])
    for weights in resampled_weights(6, codes, num_resamples=20):
        assert weights[0] == weights[1]
        assert weights[3] == weights[4] == weights[5]
        assert weights[[0, 2, 3]].sum() == 3


def test_a_seed_gives_the_same_weights_again_and_another_one_does_not() -> None:
    first, again, other = (np.array(list(resampled_weights(50, None, num_resamples=3, seed=s))) for s in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_the_spread_of_a_resampled_mean_is_its_standard_error() -> None:
    values = np.random.default_rng(0).normal(size=400)
    means = resample(lambda w: np.array([w @ values / w.sum()]), 400, None, num_resamples=2000)[:, 0]
    assert means.std() == pytest.approx(values.std() / 20, rel=0.06)


def test_rows_that_repeat_a_user_make_a_wider_interval_than_as_many_users() -> None:
    values = np.repeat(np.random.default_rng(0).normal(size=100), 9)
    spreads = [
        resample(lambda w: np.array([w @ values / w.sum()]), 900, codes, num_resamples=300).std()
        for codes in (None, np.repeat(np.arange(100), 9))
    ]
    assert spreads[1] == pytest.approx(3 * spreads[0], rel=0.2)


def test_an_interval_needs_nine_tenths_of_the_resamples() -> None:
    values = np.arange(101.0)
    assert percentile_interval(values, 0.9) == pytest.approx((5.0, 95.0))
    assert percentile_interval(np.where(values < 20, np.nan, values)) is None
    assert percentile_interval(np.array([])) is None


@pytest.mark.parametrize(("positives", "num"), [(0, 20), (3, 10), (50, 100), (20, 20)])
def test_the_interval_of_a_share_is_wilsons(positives: int, num: int) -> None:
    wanted = binomtest(positives, num).proportion_ci(0.95, method="wilson")
    labels = np.arange(num) < positives
    assert share_interval(labels) == pytest.approx((wanted.low, wanted.high))
    assert share_interval(labels, np.arange(num)) == pytest.approx((wanted.low, wanted.high))  # a user per row


def test_four_agreeing_rows_of_a_user_say_as_much_as_one() -> None:
    labels = np.arange(100) < 30
    repeated = share_interval(np.repeat(labels, 4), np.repeat(np.arange(100), 4))
    assert repeated == pytest.approx(share_interval(labels))


def test_the_interval_of_auc_holds_the_truth_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(5)
    chances = rng.beta(1, 3, 100_000)
    truth = evaluate_score(rng.random(100_000) < chances, chances, num_resamples=0).auc
    assert truth is not None
    held = 0
    for seed in range(60):
        drawn = chances[rng.integers(len(chances), size=400)]
        low, high = evaluate_score(rng.random(400) < drawn, drawn, seed=seed).intervals["auc"]
        held += low <= truth <= high
    assert held >= 52
