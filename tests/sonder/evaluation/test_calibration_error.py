from __future__ import annotations

import numpy as np
import pytest

from sonder.evaluation.calibration_error import (
    calibration_error,
    equal_mass_bins,
    error_interval,
    errors_by_chance,
)


def test_bins_are_equally_full_and_never_part_equal_predictions() -> None:
    assert equal_mass_bins(np.array([0.4, 0.1, 0.3, 0.2]), 2).tolist() == [1, 0, 1, 0]
    assert equal_mass_bins(np.array([0.2, 0.2, 0.2, 0.9]), 4).tolist() == [0, 0, 0, 1]
    assert equal_mass_bins(np.full(3, 0.5)).tolist() == [0, 0, 0]


def test_the_error_weighs_bins_by_their_rows() -> None:
    outcomes, predictions = np.array([0, 1, 1, 1]), np.array([0.2, 0.2, 0.2, 0.8])
    # 3 rows at 0.2 of which two thirds came true, 1 row at 0.8 that did
    assert calibration_error(outcomes, predictions, np.array([0, 0, 0, 1])) == pytest.approx(
        0.75 * abs(0.2 - 2 / 3) + 0.25 * 0.2
    )


def test_the_error_by_chance_of_one_bin_is_the_mean_deviation_of_a_binomial() -> None:
    errors = errors_by_chance(np.full(100, 0.5), np.zeros(100, dtype=np.int64), num_draws=4000)
    assert errors.mean() == pytest.approx(0.5 / 10 * np.sqrt(2 / np.pi), rel=0.05)  # the half-normal's mean


def test_by_chance_the_error_of_few_users_is_larger_than_that_of_many() -> None:
    few, many = (np.linspace(0.01, 0.4, num) for num in (300, 30_000))
    by_few, by_many = (errors_by_chance(chances, equal_mass_bins(chances)).mean() for chances in (few, many))
    assert by_few > 0.03
    assert by_few == pytest.approx(10 * by_many, rel=0.15)


def test_certain_predictions_have_no_error_by_chance() -> None:
    chances = np.array([0.0, 1.0, 1.0])
    assert errors_by_chance(chances, equal_mass_bins(chances)).tolist() == [0.0] * 200


def test_the_interval_begins_at_zero_where_chance_reaches_that_far() -> None:
    resampled = np.array([0.02, 0.03, 0.04])
    low, high = error_interval(0.02, resampled, np.array([0.01, 0.02, 0.03]))
    assert (low, high) == (0.0, pytest.approx(0.02 + 1.96 * resampled.std(), rel=1e-3))
    low, _ = error_interval(0.1, resampled + 0.08, np.array([0.01, 0.02, 0.03]))
    assert low == pytest.approx(0.2 - 0.11 - 1.96 * resampled.std(), rel=1e-3)
