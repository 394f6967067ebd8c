"""Forecasts of mixes whose future is known, the better of two methods, and what cannot be tested."""

from __future__ import annotations

import numpy as np
import pytest

from sonder.segments.forecast import NAIVE, TRANSITIONS, backtest, forecast_mix
from sonder.segments.growth import WEEKS_PER_MONTH, Tally
from sonder.segments.lifecycle import STATES

COLD, NEW, CORE, DORMANT = (STATES.index(name) for name in ("cold", "new", "core", "dormant"))


def steady(num_moments: int) -> Tally:
    """Four weeks on, half of core is dormant, all of new is core, dormant stays; 100 arrive as new. It grows."""
    counts = np.zeros((num_moments, len(STATES)), np.int64)
    flows = np.zeros((num_moments - WEEKS_PER_MONTH, len(STATES), len(STATES)), np.int64)
    counts[:WEEKS_PER_MONTH, NEW] = 100
    counts[:WEEKS_PER_MONTH, CORE] = 800
    for moment in range(WEEKS_PER_MONTH, num_moments):
        before = counts[moment - WEEKS_PER_MONTH]
        flow = flows[moment - WEEKS_PER_MONTH]
        flow[COLD, NEW] = 100
        flow[NEW, CORE] = before[NEW]
        flow[CORE, DORMANT] = before[CORE] // 2
        flow[CORE, CORE] = before[CORE] - before[CORE] // 2
        flow[DORMANT, DORMANT] = before[DORMANT]
        counts[moment] = flow.sum(axis=0)
    return Tally(counts, np.zeros((num_moments - 1, len(STATES), len(STATES)), np.int64), flows)


def unchanging(num_moments: int) -> Tally:
    """Windows in which half of core turned dormant, and counts that do not know of it."""
    counts = np.tile(np.array([0, 0, 80, 0, 0, 20, 0]), (num_moments, 1))
    flows = np.zeros((num_moments - WEEKS_PER_MONTH, len(STATES), len(STATES)), np.int64)
    flows[:, CORE, DORMANT] = flows[:, CORE, CORE] = 40
    return Tally(counts, np.zeros((num_moments - 1, len(STATES), len(STATES)), np.int64), flows)


def test_steady_transitions_are_projected_exactly() -> None:
    known, longer = steady(20), steady(24)
    found = forecast_mix(known, first_settled=0)
    assert found is not None
    assert found.method == TRANSITIONS
    assert found.users_S == pytest.approx(longer.counts_MS[23], abs=2)
    assert found.shares_S.sum() == pytest.approx(1)
    assert found.mae is not None
    assert found.naive_mae is not None
    assert found.mae < 0.005 < found.naive_mae
    assert found.low_S is not None
    assert found.high_S is not None
    assert np.all(found.low_S <= found.shares_S)
    assert np.all(found.shares_S <= found.high_S)


def test_the_naive_forecast_is_used_where_transitions_are_worse() -> None:
    found = forecast_mix(unchanging(20), first_settled=0)
    assert found is not None
    assert found.method == NAIVE
    assert found.shares_S.tolist() == [0, 0, 0.8, 0, 0, 0.2, 0]
    assert found.reason is not None
    assert found.naive_mae == 0
    assert found.mae == pytest.approx(0.8 / 6)  # 40 points off in two of six states: both errors stand side by side


def test_a_forecast_reads_no_window_that_ended_after_its_origin() -> None:
    told = steady(20)
    origins = backtest(told, first_settled=0)
    assert origins is not None
    changed = Tally(told.counts_MS, told.weekly_SS, told.monthly_SS.copy())
    changed.monthly_SS[9:] = 7  # these windows end at the moments 13, 14, …
    again = backtest(changed, first_settled=0)
    assert again is not None
    before = again.origins < 9 + WEEKS_PER_MONTH
    assert before.any()
    assert not before.all()
    assert np.array_equal(again.transitions_OS[before], origins.transitions_OS[before])
    assert not np.array_equal(again.transitions_OS[~before], origins.transitions_OS[~before])


def test_origins_of_a_young_log_are_left_out_where_others_remain() -> None:
    found = backtest(steady(20), first_settled=5)
    assert found is not None
    assert found.origins.tolist() == [9, 10, 11, 12, 13, 14, 15]
    few = backtest(steady(20), first_settled=18)
    assert few is not None
    assert few.origins.tolist() == [13, 14, 15]


def test_the_interval_is_the_error_that_most_origins_stay_within() -> None:
    found = forecast_mix(steady(12), first_settled=0)
    assert found is not None
    assert found.backtest is not None
    assert found.high_S is not None
    assert len(found.backtest.origins) == 4
    assert found.coverage == 0.8
    errors = found.backtest.transitions_OS if found.method == TRANSITIONS else found.backtest.naive_OS
    assert found.high_S - found.shares_S == pytest.approx(errors.max(axis=0))  # of four the largest is needed


@pytest.mark.parametrize(("num_moments", "is_told"), [(1, False), (4, False), (5, True), (8, True)])
def test_a_short_log_has_an_untested_naive_forecast_or_none(num_moments: int, is_told: bool) -> None:
    told = steady(20)
    short = Tally(
        told.counts_MS[:num_moments],
        told.weekly_SS[: num_moments - 1],
        told.monthly_SS[: max(0, num_moments - WEEKS_PER_MONTH)],
    )
    found = forecast_mix(short, first_settled=0)
    assert (found is not None) == is_told
    if found is not None:
        assert (found.method, found.backtest, found.low_S) == (NAIVE, None, None)
        assert "8 weeks" in (found.reason or "")
