"""Qini on six users, counted by hand, and its behaviour in worlds whose effect is known."""

from __future__ import annotations

import numpy as np
import pytest

from sonder.scoring.qini import (
    Experiment,
    area_under_uplift,
    average_effect,
    interval_of,
    qini_coefficient,
    qini_curve,
    resampled_coefficients,
    share_of_best,
)

# In the order of the prediction: treated 1, control 0, treated 1, control 1, treated 0, control 1.
SIX = Experiment(np.array([1.0, 0, 1, 1, 0, 1]), np.array([True, False, True, False, True, False]))
FALLING = np.array([6.0, 5, 4, 3, 2, 1])


def experiment_of(num_users: int, effect_N: np.ndarray, seed: int) -> Experiment:
    draw = np.random.default_rng(seed)
    treated = draw.random(num_users) < 0.5
    return Experiment((draw.random(num_users) < 0.3 + treated * effect_N).astype(float), treated)


def test_the_curve_counts_what_treating_brought_over_the_controls_of_the_same_share() -> None:
    curve = qini_curve(SIX, FALLING)
    # R_t - R_c * N_t / N_c over 3 treated: 1, 1, 2, 2 - 1 * 2/2, 2 - 1 * 3/2, 2 - 2 * 3/3
    assert curve.gains * 3 == pytest.approx([0, 1, 1, 2, 1, 0.5, 0])
    assert curve.shares == pytest.approx(np.arange(7) / 6)


def test_the_coefficient_is_the_area_between_the_curve_and_the_random_line() -> None:
    # trapezoids of 1/6: (0.5 + 1 + 1.5 + 1.5 + 0.75 + 0.25) / 6 / 3; the end, and so the line, is 0
    assert qini_coefficient(SIX, FALLING) == pytest.approx(5.5 / 18)
    # the best order has the treated who bought first, then the rest, then the controls who bought
    assert share_of_best(SIX, FALLING) == pytest.approx((5.5 / 18) / (8 / 18))


def test_the_uplift_curve_compares_the_rates_of_the_arms() -> None:
    # (1 - 0) * 1/6, (1 - 0) * 2/6, (1 - 0) * 3/6, (1 - 1/2) * 4/6, (2/3 - 1/2) * 5/6, (2/3 - 2/3)
    points = np.array([0, 1, 2, 3, 2, 5 / 6, 0]) / 6
    assert area_under_uplift(SIX, FALLING) == pytest.approx(((points[1:] + points[:-1]) / 2).sum() / 6)


def test_equal_predictions_are_one_step_so_their_order_does_not_matter() -> None:
    shuffled = np.array([3, 1, 5, 0, 2, 4])
    ties = np.array([1.0, 1, 1, 0, 0, 0])
    assert qini_coefficient(SIX, ties) == pytest.approx(qini_coefficient(SIX.take(shuffled), ties[shuffled]))
    assert qini_coefficient(SIX, np.zeros(6)) == 0


def test_the_average_effect_has_an_interval_that_holds_the_truth() -> None:
    held = 0
    for seed in range(200):
        _, (low, high) = average_effect(experiment_of(300, np.full(300, 0.1), seed))
        held += low <= 0.1 <= high
    assert 180 <= held <= 199


def test_the_true_effect_orders_better_than_chance_and_its_reverse_worse() -> None:
    effect = np.linspace(-0.2, 0.4, 2_000)
    experiment = experiment_of(2_000, effect, seed=1)
    draws = resampled_coefficients(experiment, {"true": effect, "reverse": -effect}, seed=0, num_draws=100)
    assert interval_of(draws["true"])[0] > 0
    assert interval_of(draws["reverse"])[1] < 0


def test_without_an_effect_the_interval_of_an_order_covers_zero() -> None:
    covered = 0
    for seed in range(20):
        experiment = experiment_of(400, np.zeros(400), seed)
        order = np.random.default_rng(seed + 100).random(400)
        low, high = interval_of(resampled_coefficients(experiment, {"any": order}, seed=0, num_draws=100)["any"])
        covered += low <= 0 <= high
    assert covered >= 17


def test_an_experiment_without_a_control_is_none() -> None:
    with pytest.raises(ValueError, match="both arms"):
        Experiment(np.ones(2), np.array([True, True]))
