from __future__ import annotations

import json

import numpy as np
import pytest
from scipy.stats import spearmanr
from sklearn.metrics import d2_tweedie_score, mean_tweedie_deviance

from sonder.evaluation.score_means import evaluate_mean

RNG = np.random.default_rng(1)
MEANS = RNG.gamma(1.0, 5.0, 2000) + 0.01
SPENT = (RNG.random(2000) < 0.3) * RNG.gamma(2.0, MEANS / 0.6)
COUNTS = RNG.poisson(MEANS / 5).astype(np.float64)


def test_a_hand_computed_example() -> None:
    quality = evaluate_mean(np.array([0, 0, 2, 6]), np.array([1, 1, 2, 4]), power=1.0, num_resamples=0)
    assert (quality.predicted_mean, quality.observed_mean, quality.share_zero) == (2.0, 2.0, 0.5)
    assert quality.predicted_to_observed == 1.0
    assert quality.gini == pytest.approx(1.0)  # its order is the best there is
    # tenths that no order parts: 1 and 1 promised 0 each, 2 for 2, 4 for 6
    assert quality.calibration_error == pytest.approx((2 + 0 + 2) / 4 / 2)
    assert quality.top_decile_share == pytest.approx(0.4 * 6 / 8)  # the best 0.4 users of four
    assert quality.top_decile_lift == pytest.approx(3.0)


@pytest.mark.parametrize(("outcomes", "power"), [(SPENT, 1.5), (SPENT, 1.2), (COUNTS, 1.0)])
def test_deviance_is_that_of_sklearn(outcomes: np.ndarray, power: float) -> None:
    quality = evaluate_mean(outcomes, MEANS, power=power, num_resamples=0)
    assert quality.deviance == pytest.approx(mean_tweedie_deviance(outcomes, MEANS, power=power))
    assert quality.deviance_explained == pytest.approx(d2_tweedie_score(outcomes, MEANS, power=power))


def test_spearman_is_that_of_scipy() -> None:
    quality = evaluate_mean(SPENT, MEANS, power=1.5, num_resamples=0)
    assert quality.spearman == pytest.approx(spearmanr(SPENT, MEANS).statistic)


def test_a_constant_has_no_order_and_explains_nothing() -> None:
    quality = evaluate_mean(SPENT, np.full(2000, SPENT.mean()), power=1.5, num_resamples=0)
    assert quality.gini == pytest.approx(0.0, abs=1e-9)
    assert quality.spearman is None
    assert quality.deviance_explained == pytest.approx(0.0, abs=1e-9)
    assert quality.top_decile_lift == pytest.approx(1.0)


def test_intervals_hold_the_estimate_and_a_flattering_mean_lies_outside() -> None:
    honest, doubled = (evaluate_mean(SPENT, factor * MEANS, power=1.5) for factor in (1, 2))
    for name, (low, high) in honest.intervals.items():
        assert low < getattr(honest, name) < high, name
    assert len(honest.intervals) == 4
    assert honest.intervals["predicted_to_observed"][0] < 1 < honest.intervals["predicted_to_observed"][1]
    assert doubled.intervals["predicted_to_observed"][0] > 1.5
    assert doubled.gini == pytest.approx(honest.gini)  # the order is the same


def test_a_promise_of_nothing_to_who_then_pays_is_finite_and_bad() -> None:
    quality = evaluate_mean(np.array([0.0, 10.0]), np.array([1.0, 0.0]), power=1.0, num_resamples=0)
    assert quality.deviance is not None
    assert np.isfinite(quality.deviance)
    assert quality.deviance_explained is not None
    assert quality.deviance_explained < -1


def test_refunds_have_no_deviance_but_all_the_rest() -> None:
    quality = evaluate_mean(np.array([-5.0, 0, 10, 20] * 20), np.array([1.0, 1, 5, 9] * 20), power=1.5)
    assert (quality.deviance, quality.deviance_explained) == (None, None)
    assert quality.reason == "outcomes below 0 have no deviance"
    assert quality.gini is not None


def test_what_cannot_be_measured_says_why() -> None:
    nothing = evaluate_mean(np.zeros(3), np.ones(3), power=1.0)
    assert nothing.reason == "no value came from 3 rows: they sum to 0"
    assert nothing.metrics("spend") == {"scores.spend.users": 3}
    assert evaluate_mean(np.array([]), np.array([]), power=1.0).reason == "no user to measure on"
    json.dumps(nothing.to_dict(), allow_nan=False)


@pytest.mark.parametrize(
    ("outcomes", "predictions", "power", "match"),
    [
        ([1.0], [1.0, 2.0], 1.0, "one of each"),
        ([1.0], [-0.1], 1.0, "below 0"),
        ([np.nan], [1.0], 1.0, "not finite"),
        ([1.0], [1.0], 2.0, "power"),
    ],
)
def test_what_is_no_mean_is_refused(outcomes: list[float], predictions: list[float], power: float, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        evaluate_mean(np.array(outcomes), np.array(predictions), power=power)
