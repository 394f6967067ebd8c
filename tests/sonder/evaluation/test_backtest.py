from __future__ import annotations

import json

import numpy as np
import pytest
from scipy.stats import linregress
from scipy.stats import t as student
from sklearn.metrics import average_precision_score, roc_auc_score

from sonder.evaluation.backtest import Backtest, evaluate_backtest, slope_with_interval
from sonder.history.timelines import MICROSECONDS_PER_DAY

WEEK_US = 7 * MICROSECONDS_PER_DAY
USERS = 1500


def ageing(weekly: float, *, num_cutoffs: int = 5, seed: int = 0, is_share: bool = True) -> Backtest:
    """The chance of everybody falls by `weekly` a week, and what was promised does not."""
    rng = np.random.default_rng(seed)
    own = rng.beta(2, 6, USERS)
    chances = np.tile(own, num_cutoffs)
    weeks = np.repeat(np.arange(num_cutoffs), USERS)
    came = (rng.random(len(chances)) < chances * np.exp(-weekly * weeks)).astype(np.float64)
    value = came if is_share else came * rng.gamma(2, 5, len(came))
    return evaluate_backtest(
        value[:, None],
        (chances if is_share else 10 * chances)[:, None],
        weeks * WEEK_US,
        np.tile(np.arange(USERS), num_cutoffs),
        is_share=is_share,
        trained_until_us=-2 * WEEK_US,
        num_resamples=100,
    )


def test_each_cutoff_is_measured_by_itself() -> None:
    labels, values = np.array([0, 1, 1, 0, 1, 0, 0, 1.0]), np.array([0.1, 0.6, 0.5, 0.2, 0.3, 0.4, 0.2, 0.9])
    cutoffs = np.array([0, 0, 0, 0, WEEK_US, WEEK_US, WEEK_US, WEEK_US])
    backtest = evaluate_backtest(
        labels[:, None], values[:, None], cutoffs, np.arange(8) % 4, is_share=True, trained_until_us=-WEEK_US
    )
    first, second = backtest.points
    assert (first.users, first.positives, first.age_days, second.age_days) == (4, 2, 7.0, 14.0)
    assert first.auc == 1.0
    assert second.auc == pytest.approx(roc_auc_score(labels[4:], values[4:]))
    assert second.pr_auc == pytest.approx(average_precision_score(labels[4:], values[4:]))
    assert second.predicted_to_observed == pytest.approx(1.8 / 2)
    assert first.ece == pytest.approx((0.1 + 0.4 + 0.5 + 0.2) / 4)
    assert backtest.drift.sentence == "Drift is not told: 2 cutoffs, 3 are needed."


def test_a_model_that_keeps_its_promise_does_not_drift() -> None:
    drift = ageing(0.0).drift
    assert drift.is_beyond_chance is False
    assert drift.sentence.startswith("No drift of calibration beyond chance over 5 cutoffs in 4 weeks:")
    assert drift.ece_interval is not None
    assert drift.ece_interval[0] < 0 < drift.ece_interval[1]


def test_a_chance_that_falls_by_a_tenth_a_week_is_drift_of_that_size() -> None:
    backtest = ageing(0.1)
    assert backtest.drift.is_beyond_chance is True
    assert backtest.drift.ratio_a_week == pytest.approx(np.expm1(0.1), abs=0.03)
    assert backtest.drift.ratio_interval is not None
    assert backtest.drift.ratio_interval[0] < np.expm1(0.1) < backtest.drift.ratio_interval[1]
    assert backtest.drift.ece_a_week is not None
    assert backtest.drift.ece_a_week > 0
    assert backtest.drift.sentence.startswith("Calibration drifts by +")
    assert [point.age_days for point in backtest.points] == [14, 21, 28, 35, 42]


def test_means_drift_too_and_have_no_ece() -> None:
    backtest = ageing(0.15, is_share=False)
    assert backtest.drift.ratio_a_week == pytest.approx(np.expm1(0.15), abs=0.05)
    assert backtest.drift.ece_a_week is None
    assert backtest.points[0].auc is None
    assert backtest.points[0].gini is not None
    assert 0 < backtest.points[0].gini < 1


def test_a_shock_of_one_week_is_not_taken_for_drift() -> None:
    weeks, values = np.arange(4.0), np.array([0.0, 0.0, 0.0, 0.3])
    sure_of_users = np.tile(values, (50, 1)) + np.random.default_rng(0).normal(0, 0.001, (50, 4))
    slope, (low, high) = slope_with_interval(weeks, values, sure_of_users)
    assert slope == pytest.approx(0.09)
    assert low < 0 < high
    fit = linregress(weeks, values)
    assert high - slope == pytest.approx(student.ppf(0.975, 2) * fit.stderr)


def test_noise_of_users_widens_a_line_that_happens_to_be_straight() -> None:
    weeks = np.arange(4.0)
    noisy = np.random.default_rng(0).normal(0, 0.1, (4000, 4)) + 0.01 * weeks
    slope, (low, high) = slope_with_interval(weeks, 0.01 * weeks, noisy)
    assert slope == pytest.approx(0.01)
    assert (high - low) / 2 == pytest.approx(1.96 * 0.1 / np.sqrt(5), rel=0.05)  # spread of the weeks is 5


def test_a_cutoff_without_outcome_tells_no_drift() -> None:
    labels = np.repeat([1.0, 1.0, 0.0], 4)
    backtest = evaluate_backtest(
        labels[:, None], np.full((12, 1), 0.5), np.repeat([0, 1, 2], 4) * WEEK_US, np.arange(12), is_share=True
    )
    assert backtest.drift.ratio_a_week is None
    assert "nothing came true" in backtest.drift.sentence
    assert backtest.points[2].predicted_to_observed is None
    assert backtest.points[2].ratio_interval is None
    json.dumps(backtest.to_dict(), allow_nan=False)


def test_several_outputs_are_one_promise() -> None:
    came = np.tile(np.array([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0], [1.0, 1.0]]), (3, 1))
    chances = np.tile(np.array([[0.9, 0.2], [0.1, 0.6], [0.2, 0.1], [0.7, 0.8]]), (3, 1))
    backtest = evaluate_backtest(
        came, chances, np.repeat([0, 1, 2], 4) * WEEK_US, np.tile(np.arange(4), 3), is_share=True, num_resamples=20
    )
    assert [point.auc for point in backtest.points] == [1.0, 1.0, 1.0]
    assert backtest.points[0].predicted_to_observed == pytest.approx(3.6 / 4)
    assert backtest.points[0].positives == 4
