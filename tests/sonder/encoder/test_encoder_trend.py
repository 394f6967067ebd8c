"""Popularity over time: decayed, blind to the future, the half-life found in the data."""

from __future__ import annotations

import numpy as np
import pytest

from sonder.encoder import trend
from sonder.encoder.trend import constant_trend, decayed_counts, fit_trend, log_shares

DAY = 86_400_000_000


def trend_of(items, days, num_items=4, window_days=7):
    return fit_trend(
        np.asarray(items, dtype=np.int32),
        (np.asarray(days) * DAY).astype(np.int64),
        num_items,
        start_us=0,
        end_us=64 * DAY,  # one point a day
        window_us=window_days * DAY,
        add_up=lambda counts: counts,
    )


def test_a_point_knows_nothing_of_its_own_day_or_later_ones():
    random = np.random.default_rng(0)
    items, days = random.integers(0, 4, 500), np.sort(random.uniform(0, 64, 500))
    changed = np.where(days >= 30, 3 - items, items)
    before, after = trend_of(items, days), trend_of(changed, days)
    if before.half_life_us == after.half_life_us:
        np.testing.assert_array_equal(before.log_shares_PI[:31], after.log_shares_PI[:31])
    assert not np.array_equal(before.log_shares_PI[31:], after.log_shares_PI[31:])
    assert before.points_at(np.array([-5, 0, 30 * DAY - 1, 30 * DAY, 900 * DAY])).tolist() == [0, 0, 29, 30, 63]


def test_fashions_get_a_short_half_life_and_classics_a_long_one():
    days = np.linspace(0, 63.9, 6400)
    fashion = (days // 16).astype(int)  # another item every 16 days
    random = np.random.default_rng(0)
    classics = random.choice(4, 6400, p=[0.7, 0.2, 0.07, 0.03])
    assert trend_of(fashion, days, window_days=4).half_life_us < 4 * DAY
    assert trend_of(classics, days, window_days=4).half_life_us >= 16 * DAY


def test_the_counts_are_the_same_whatever_is_counted_at_once(monkeypatch):
    random = np.random.default_rng(1)
    items, days = random.integers(0, 4, 500), np.sort(random.uniform(0, 64, 500))
    whole = trend_of(items, days)
    monkeypatch.setattr(trend, "_BLOCK_EVENTS", 7)
    np.testing.assert_array_equal(trend_of(items, days).log_shares_PI, whole.log_shares_PI)


def test_the_newest_counts_are_nearly_those_of_each_event_by_itself():
    random = np.random.default_rng(1)
    items, days = random.integers(0, 4, 3000), np.sort(random.uniform(0, 64, 3000))
    trend = trend_of(items, days)
    exact = decayed_counts(
        items.astype(np.int32), (days * DAY).astype(np.int64), 4, as_of_us=64 * DAY, half_life_us=trend.half_life_us
    )
    np.testing.assert_allclose(trend.newest_I, exact, rtol=0.03)


def test_counts_halve_with_each_half_life_and_stop_at_the_cutoff():
    counts = decayed_counts(
        np.array([0, 0, 1, 1], dtype=np.int32),
        np.array([0, 10, 20, 30], dtype=np.int64),
        3,
        as_of_us=30,
        half_life_us=10,
    )
    assert counts.tolist() == [0.125 + 0.25, 0.5, 0.0]


def test_without_time_there_is_one_point_for_ever():
    trend = constant_trend(np.array([3, 0, 1]))
    assert trend.points_at(np.array([-1, 0, 10**15])).tolist() == [0, 0, 0]
    np.testing.assert_array_equal(trend.log_shares_PI[0], log_shares(trend.newest_I))
    assert np.exp(trend.log_shares_PI[0]).sum() == pytest.approx(1)
    assert np.exp(trend.log_shares_PI[0, 1]) == pytest.approx(0.5 / 5.5)
