"""The lifecycle mix four weeks ahead, beside the naive forecast that nothing changes, with the error both really had.

Transitions: a user of state r goes to state s within four weeks with the share of users who did so in the newest four
of the weekly ending four-week windows; as many users arrive, in the same states, as in the mean of these windows. It is
one step of a Markov chain: what happens next depends on the state alone.
Backtest: both forecasts are made at every week of the past from what was known then, and compared with the mix four
weeks later. The error is the mean absolute one over origins and states, as a difference of shares (0.01 is one point).
Transitions are used where their error is the lower one, else the naive forecast; each error is published as it is.
Interval: the forecast plus and minus, per state, the absolute error that INTERVAL_COVERAGE of the origins stay within
(the largest where they are few; then the coverage promised is lower, see `coverage`).
Limits: windows and origins overlap, so the errors are fewer independent observations than their number says. A log
younger than dormant_days looks as if all were new: origins before are left out as long as LEAST_ORIGINS others remain.
No season is known: a month like the last ones is assumed.
Shapes: M moments (weekly), S = 7 states; shares are of the users known, so that cold is always 0.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from sonder.segments.growth import WEEKS_PER_MONTH, Tally
from sonder.segments.lifecycle import COLD, STATES
from sonder.segments.moments import DAYS_PER_WEEK

HORIZON_DAYS = WEEKS_PER_MONTH * DAYS_PER_WEEK
NUM_WINDOWS = 4
LEAST_ORIGINS = 3
INTERVAL_COVERAGE = 0.8
TRANSITIONS, NAIVE = "transitions", "naive"


@dataclass(frozen=True)
class Backtest:
    """Absolute errors of both forecasts at O past origins, moments of the tally."""

    origins: NDArray[np.int64]  # [O] places among the moments
    transitions_OS: NDArray[np.float64]
    naive_OS: NDArray[np.float64]

    @property
    def transitions_mae(self) -> float:
        return float(self.transitions_OS[:, 1:].mean())

    @property
    def naive_mae(self) -> float:
        return float(self.naive_OS[:, 1:].mean())


@dataclass(frozen=True)
class MixForecast:
    """The mix HORIZON_DAYS after the last moment by `method`; `reason` says why, where something is not there."""

    method: str  # TRANSITIONS or NAIVE
    users_S: NDArray[np.float64]  # expected
    shares_S: NDArray[np.float64]
    low_S: NDArray[np.float64] | None  # None where too few past origins could be tested
    high_S: NDArray[np.float64] | None
    coverage: float | None  # share of months that the interval is to hold, state by state
    backtest: Backtest | None
    reason: str | None

    @property
    def mae(self) -> float | None:
        """Error of the transitions, whichever method is used; None where it could not be tested."""
        return self.backtest.transitions_mae if self.backtest else None

    @property
    def naive_mae(self) -> float | None:
        return self.backtest.naive_mae if self.backtest else None


def forecast_mix(counted: Tally, *, first_settled: int) -> MixForecast | None:
    """Forecast from the last moment; None if nobody is known there or the log is not four weeks long.

    `first_settled`: place of the first moment at which the log was dormant_days old.
    """
    last = len(counted.counts_MS) - 1
    if last < WEEKS_PER_MONTH or not counted.counts_MS[last].any():
        return None
    tested = backtest(counted, first_settled=first_settled)
    unchanged = counted.counts_MS[last].astype(np.float64)
    if tested is None:
        reason = f"a backtest needs {2 * WEEKS_PER_MONTH} weeks of log at least; untested transitions are not used"
        return MixForecast(NAIVE, unchanged, _shares(unchanged), None, None, None, None, reason)
    if tested.transitions_mae < tested.naive_mae:
        users, errors_OS = _project(counted, last), tested.transitions_OS
        return _with_interval(
            MixForecast(TRANSITIONS, users, _shares(users), None, None, None, tested, None), errors_OS
        )
    worse = "the transitions were not better than the naive forecast, which is used"
    return _with_interval(
        MixForecast(NAIVE, unchanged, _shares(unchanged), None, None, None, tested, worse), tested.naive_OS
    )


def _with_interval(forecast: MixForecast, errors_OS: NDArray[np.float64]) -> MixForecast:
    num = len(errors_OS)
    if num < LEAST_ORIGINS:
        return forecast
    rank = min(num, math.ceil((num + 1) * INTERVAL_COVERAGE))
    reach_S = np.sort(errors_OS, axis=0)[rank - 1]
    return replace(
        forecast,
        low_S=np.clip(forecast.shares_S - reach_S, 0, 1),
        high_S=np.clip(forecast.shares_S + reach_S, 0, 1),
        coverage=min(INTERVAL_COVERAGE, num / (num + 1)),
    )


def backtest(counted: Tally, *, first_settled: int) -> Backtest | None:
    """Both forecasts at every origin with a four-week window before it and four weeks after; None without any."""
    num = len(counted.counts_MS)
    origins = np.arange(WEEKS_PER_MONTH, num - WEEKS_PER_MONTH)
    origins = origins[counted.counts_MS[origins].sum(axis=1) > 0]
    settled = origins[origins - WEEKS_PER_MONTH >= first_settled]
    origins = settled if len(settled) >= LEAST_ORIGINS else origins[-LEAST_ORIGINS:]
    if not len(origins):
        return None
    actual = [_shares(counted.counts_MS[origin + WEEKS_PER_MONTH]) for origin in origins]
    projected = [_shares(_project(counted, origin)) for origin in origins]
    unchanged = [_shares(counted.counts_MS[origin]) for origin in origins]
    return Backtest(origins, np.abs(np.subtract(projected, actual)), np.abs(np.subtract(unchanged, actual)))


def _project(counted: Tally, origin: int) -> NDArray[np.float64]:
    """Expected users by state four weeks after an origin, from the windows that had ended by then [S]."""
    newest = origin - WEEKS_PER_MONTH + 1
    windows = counted.monthly_SS[max(0, newest - NUM_WINDOWS) : newest]
    flow_SS = windows.sum(axis=0).astype(np.float64)
    arrivals_S = flow_SS[COLD] / len(windows)
    flow_SS[COLD] = 0
    leaving_S = flow_SS.sum(axis=1, keepdims=True)
    # Nobody was seen in this state in the windows: its users are taken to stay.
    chance_SS = np.where(leaving_S > 0, flow_SS / np.maximum(leaving_S, 1), np.eye(len(STATES)))
    expected: NDArray[np.float64] = counted.counts_MS[origin] @ chance_SS + arrivals_S
    return expected


def _shares(users_S: NDArray[np.float64] | NDArray[np.int64]) -> NDArray[np.float64]:
    shares: NDArray[np.float64] = users_S / users_S.sum()
    return shares
