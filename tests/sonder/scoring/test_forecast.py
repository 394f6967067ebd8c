"""Intervals and held-out gains, against enumeration and simulation."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from sonder.scoring.decisions import Payoff
from sonder.scoring.forecast import (
    TestWindow,
    gain_interval,
    num_interval,
    poisson_binomial,
    realised,
    sum_interval,
)

CUTOFF = "2026-01-01T00:00:00+00:00"


def test_the_number_that_comes_true_is_distributed_as_enumerated() -> None:
    probabilities = np.array([0.1, 0.5, 0.8])
    masses = np.zeros(4)
    for outcome in product((0, 1), repeat=3):
        masses[sum(outcome)] += np.prod(np.where(outcome, probabilities, 1 - probabilities))
    assert poisson_binomial(probabilities) == pytest.approx(masses)


@pytest.mark.parametrize("num_users", [400, 4_000])  # exact, and by the corrected normal
def test_the_interval_holds_95_of_100_worlds(num_users: int) -> None:
    draw = np.random.default_rng(0)
    probabilities = draw.beta(0.3, 6, num_users)
    low, high = num_interval(probabilities)
    worlds = (draw.random((3_000, num_users)) < probabilities).sum(axis=1)
    assert 0.94 < np.mean((worlds >= low) & (worlds <= high)) < 0.98


def test_certain_users_leave_no_doubt() -> None:
    assert num_interval(np.ones(3)) == (3, 3)
    assert num_interval(np.ones(3_000)) == (3_000, 3_000)
    assert num_interval(np.array([])) == (0, 0)


def test_a_score_that_promised_twice_what_came_true_is_told_so_by_the_interval() -> None:
    draw = np.random.default_rng(1)
    scores = draw.uniform(0.2, 0.8, 4_000)
    window = TestWindow(scores, (draw.random(4_000) < scores / 2).astype(float), CUTOFF)
    low, high = sum_interval(scores[:500], window, share=1.0, kind="probability", seed=0)
    assert low < scores[:500].sum() / 2 < high < scores[:500].sum()


def test_the_interval_of_a_calibrated_score_holds_its_promise_and_is_wider_than_luck() -> None:
    draw = np.random.default_rng(2)
    scores = draw.uniform(0, 1, 500)
    window = TestWindow(scores, (draw.random(500) < scores).astype(float), CUTOFF)
    low, high = sum_interval(scores, window, share=1.0, kind="probability", seed=0)
    luck = num_interval(scores)
    assert low < scores.sum() < high
    assert high - low > luck[1] - luck[0]


def test_amounts_have_an_interval_only_with_a_test_window() -> None:
    draw = np.random.default_rng(3)
    amounts = draw.gamma(2, 5, 1_000)
    window = TestWindow(np.full(1_000, 10.0), amounts, CUTOFF)
    low, high = sum_interval(np.full(100, 10.0), window, share=0.5, kind="amount", seed=0)
    assert low < 1_000 < high
    assert np.isnan(sum_interval(np.full(100, 10.0), None, share=0.5, kind="amount", seed=0)).all()


def test_the_interval_of_a_gain_follows_the_payoff_even_downwards() -> None:
    assert gain_interval(Payoff(10, -1), 100, (20, 30)) == (100, 200)
    assert gain_interval(Payoff(-10, 5), 100, (20, 30)) == (200, 300)


def test_the_held_out_gain_stands_between_random_and_perfect() -> None:
    window = TestWindow(np.array([0.9, 0.8, 0.7, 0.1]), np.array([1.0, 0.0, 1.0, 0.0]), CUTOFF)
    told = realised(window, Payoff(10, -1), share=0.5, kind="probability", seed=0)
    assert told.num_chosen == 2
    assert told.promised == pytest.approx(15)
    assert (told.random, told.gain, told.perfect) == (8, 8, 18)
    assert told.cutoff == CUTOFF


def test_users_who_would_have_cost_money_are_left_out_of_the_held_out_choice_too() -> None:
    window = TestWindow(np.array([0.9, 0.05]), np.array([1.0, 1.0]), CUTOFF)
    assert realised(window, Payoff(10, -1), share=1.0, kind="probability", seed=0).num_chosen == 1


def test_an_uplift_may_turn_out_negative_and_has_no_perfect_order() -> None:
    draw = np.random.default_rng(4)
    window = TestWindow(np.full(2_000, 0.01), draw.normal(0.0, 1.0, 2_000), CUTOFF)
    low, high = sum_interval(np.full(100, 0.01), window, share=1.0, kind="uplift", seed=0)
    assert low < 0 < high
    assert realised(window, Payoff(100, -0.1), share=1.0, kind="uplift", seed=0).perfect is None
