"""Errors of ratios, against formulas that everybody knows."""

from __future__ import annotations

import numpy as np
import pytest

from sonder.experiments import clustered
from sonder.experiments.clustered import estimate_ratio


def test_one_row_a_user_is_the_mean_with_its_usual_error() -> None:
    values = np.random.default_rng(1).exponential(size=500)
    found = estimate_ratio(values, np.ones(500), np.arange(500), num_resamples=4_000)
    error = values.std(ddof=1) / 500**0.5
    assert found.value == pytest.approx(values.mean())
    assert found.standard_error == pytest.approx(error)
    assert found.interval == pytest.approx((values.mean() - 1.959964 * error, values.mean() + 1.959964 * error))
    # An end of a percentile interval of 4,000 draws has a Monte-Carlo error of 0.04 standard errors.
    assert found.bootstrap_interval == pytest.approx(found.interval, abs=0.3 * error)


def test_the_bootstrap_does_not_depend_on_how_many_users_fit_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    values, codes = np.random.default_rng(1).exponential(size=60), np.arange(60) // 3
    whole = estimate_ratio(values, np.ones(60), codes, num_resamples=101)
    monkeypatch.setattr(clustered, "_CELLS_AT_ONCE", 20 * 7)
    assert estimate_ratio(values, np.ones(60), codes, num_resamples=101) == whole


def test_one_user_says_nothing_about_the_error() -> None:
    found = estimate_ratio(np.array([1.0, 2.0]), np.ones(2), np.zeros(2, dtype=np.int64))
    assert found.value == 1.5
    assert np.isnan([found.standard_error, *found.interval, *found.bootstrap_interval]).all()
