"""Calibration: it repairs what is wrong, leaves what is right, and is chosen honestly."""

from __future__ import annotations

import numpy as np
import orjson
import pytest
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import expit, logit

from sonder.scoring.calibration import (
    Calibrator,
    cross_fit_losses,
    fit_calibrator,
    fit_mean_calibrator,
    fit_method,
    log_loss,
    tweedie_deviance,
)


def sample(num: int, seed: int = 0) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Log-odds that are true, and what happened."""
    draw = np.random.default_rng(seed)
    logits = draw.normal(-1.0, 1.2, num)
    return logits, draw.random(num) < expit(logits)


def test_margins_that_are_right_are_left_alone_or_lose_nothing() -> None:
    logits, labels = sample(4000)
    fresh, happened = sample(20_000, seed=1)
    calibrated = fit_calibrator(logits, labels)(fresh)
    assert log_loss(happened, calibrated) <= log_loss(happened, expit(fresh)) + 0.002


def test_margins_that_are_stretched_and_shifted_are_repaired_by_platt() -> None:
    logits, labels = sample(4000)
    calibrator = fit_calibrator(3 * logits + 2, labels)
    assert calibrator.method == "platt"
    fresh, happened = sample(20_000, seed=1)
    repaired, raw = (log_loss(happened, p) for p in (calibrator(3 * fresh + 2), expit(3 * fresh + 2)))
    assert repaired < raw - 0.2
    assert repaired == pytest.approx(log_loss(happened, expit(fresh)), abs=0.003)


def test_a_bent_scale_is_repaired_by_the_isotonic_function() -> None:
    logits, labels = sample(20_000)
    calibrator = fit_calibrator(np.sign(logits) * logits**4, labels)
    assert calibrator.method == "isotonic"
    fresh, happened = sample(20_000, seed=1)
    repaired = log_loss(happened, calibrator(np.sign(fresh) * fresh**4))
    assert repaired == pytest.approx(log_loss(happened, expit(fresh)), abs=0.005)


def test_the_isotonic_function_makes_no_ties_of_margins_that_differ() -> None:
    logits, labels = sample(2000)
    calibrator = fit_method("isotonic", logits, labels)
    assert len(calibrator.margins) < 60  # pooled: most margins lie between two middles, and some beyond them
    told = calibrator(np.sort(logits))
    assert (np.diff(told) > 0).all()
    assert told.sum() == pytest.approx(labels.sum(), rel=0.01)
    assert 0 < told[0] < told[-1] < 1


def test_beyond_the_outermost_middles_the_isotonic_function_goes_on_with_platts_slope() -> None:
    logits, labels = sample(2000)
    calibrator = fit_method("isotonic", logits, labels)
    ends = np.array([calibrator.margins[0], calibrator.margins[-1]])
    steps = np.array([-0.5, 0.5])
    beyond = logit(calibrator(ends + steps)) - logit(np.array([calibrator.heights[0], calibrator.heights[-1]]))
    assert beyond == pytest.approx(steps * fit_method("platt", logits, labels).slope)


def test_an_amount_beyond_the_highest_middle_grows_with_its_margin() -> None:
    logs, spent = amounts(2000)
    calibrator = fit_method("isotonic", logs, spent, link="log")
    top = calibrator.margins[-1]
    assert calibrator(np.array([top + 1.0])) == pytest.approx(np.e * calibrator.heights[-1])


def test_few_rows_are_not_judged_on_what_they_were_fitted_to() -> None:
    logits, labels = sample(60)
    losses = cross_fit_losses(logits, labels)
    assert losses["isotonic"] > losses["none"]  # in-sample it would be the lowest, always
    assert fit_calibrator(logits, labels).method != "isotonic"


def test_order_is_kept_and_nothing_is_impossible() -> None:
    logits = np.linspace(-8, 8, 400)
    calibrator = Calibrator("isotonic", margins=(-1.0, 1.0), heights=(0.01, 0.99))
    probabilities = calibrator(logits)
    assert (np.diff(probabilities) >= 0).all()
    perfect = fit_calibrator(logits, logits > 0)
    assert 0 < perfect(logits).min() < perfect(logits).max() < 1


@pytest.mark.parametrize("num_positives", [1, 30, 199])
def test_platt_is_the_optimum_for_platts_targets_even_where_the_margins_separate(num_positives: int) -> None:
    margins = np.linspace(-8, 8, 200)
    labels = np.arange(200) >= 200 - num_positives
    targets = np.where(labels, (num_positives + 1) / (num_positives + 2), 1 / (200 - num_positives + 2))

    def loss(line: NDArray[np.float64]) -> float:
        raw = line[0] * margins + line[1]
        return float((np.logaddexp(0, raw) - targets * raw).mean())

    fitted = fit_method("platt", margins, labels)
    best = minimize(loss, np.zeros(2), method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-13, "maxiter": 10_000})
    assert loss(np.array([fitted.slope, fitted.intercept])) <= best.fun + 1e-9
    assert fitted.slope > 0
    probabilities = fitted(margins)
    assert 0 < probabilities.min() < probabilities.max() < 1


@pytest.mark.parametrize("stretch", [1.0, 3.0], ids=["none or platt", "platt"])
def test_json_keeps_every_bit(stretch: float) -> None:
    logits, labels = sample(500)
    fitted = [fit_calibrator(stretch * logits, labels), Calibrator("isotonic", 1.0, 0.0, (0.1, 1 / 3), (0.2, 2 / 3))]
    for calibrator in fitted:
        assert Calibrator.from_dict(orjson.loads(orjson.dumps(calibrator.to_dict()))) == calibrator


def test_a_constant_label_cannot_be_calibrated() -> None:
    with pytest.raises(ValueError, match="nothing to fit"):
        fit_calibrator(np.zeros(5), np.zeros(5, dtype=np.bool_))


def amounts(num: int, seed: int = 0) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Logarithms of true means, and what was spent: nothing for most, a skewed amount for the others."""
    draw = np.random.default_rng(seed)
    logs = draw.normal(1.0, 0.8, num)
    spends = draw.random(num) < 0.3
    return logs, np.where(spends, draw.gamma(2.0, np.exp(logs) / 0.6), 0.0)


def test_an_amount_that_is_told_a_third_too_low_is_scaled_to_the_total() -> None:
    logs, spent = amounts(4000)
    calibrator = fit_mean_calibrator(logs - np.log(1.5), spent, power=1.5)
    assert (calibrator.method, calibrator.link) == ("scale", "log")
    assert calibrator(logs - np.log(1.5)).sum() == pytest.approx(spent.sum())
    fresh, came = amounts(20_000, seed=1)
    assert calibrator(fresh - np.log(1.5)).sum() == pytest.approx(came.sum(), rel=0.1)


def test_a_bent_amount_is_repaired_by_the_isotonic_function_and_stays_above_nothing() -> None:
    logs, spent = amounts(20_000)
    bent = logs**3
    calibrator = fit_mean_calibrator(bent, spent, power=1.5)
    assert calibrator.method == "isotonic"
    fresh, came = amounts(20_000, seed=1)
    told = calibrator(fresh**3)
    assert told.min() > 0
    raw, repaired = (tweedie_deviance(came, means, power=1.5) for means in (np.exp(np.clip(fresh**3, -9, 9)), told))
    assert repaired < raw
    assert Calibrator.from_dict(orjson.loads(orjson.dumps(calibrator.to_dict()))) == calibrator


def test_amounts_that_are_all_nothing_cannot_be_calibrated() -> None:
    with pytest.raises(ValueError, match="nothing to fit"):
        fit_mean_calibrator(np.zeros(5), np.zeros(5), power=1.0)
