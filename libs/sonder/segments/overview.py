"""All that is told of the lifecycle of a log at a moment: mixes, accounts, transitions, cohorts, forecast.

`count` reads histories, `sum` of its results over disjoint sets of users is exact, and `LifecycleOverview` derives the
rest from the small counts. `to_dict` is what `segments/growth.json` holds; `from_dict` reads the counts back.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sonder.segments.cohorts import Cohorts, count_cohorts, empty_cohorts
from sonder.segments.forecast import HORIZON_DAYS, MixForecast, forecast_mix
from sonder.segments.growth import Period, Tally, accounts, days_of, period_weeks, settled_from, tally
from sonder.segments.lifecycle import STATES
from sonder.segments.moments import states_at, weekly_moments
from sonder.segments.thresholds import LifecycleThresholds

NO_CALENDAR = "the log has an order and no dates, so there is no calendar to count growth by"
TOO_SHORT = {
    "growth": "growth needs a week of log at least",
    "forecast": f"a forecast needs {HORIZON_DAYS} days of log at least",
}


@dataclass(frozen=True)
class LifecycleOverview:
    """The counts of a log before `as_of`, and what follows from them."""

    first_us: int
    as_of_us: int
    thresholds: LifecycleThresholds
    tally: Tally
    cohorts: Cohorts

    @classmethod
    def empty(cls, first_us: int, as_of_us: int, thresholds: LifecycleThresholds) -> LifecycleOverview:
        moments = weekly_moments(first_us, as_of_us)
        return cls(first_us, as_of_us, thresholds, Tally.empty(len(moments)), empty_cohorts(first_us, as_of_us))

    @property
    def moments_us(self) -> NDArray[np.int64]:
        return weekly_moments(self.first_us, self.as_of_us)

    @property
    def settled_from_us(self) -> int:
        return settled_from(self.first_us, self.thresholds.dormant_days)

    @property
    def mix(self) -> dict[str, int]:
        """Users by state at `as_of`."""
        return {state: int(self.tally.counts_MS[-1, place]) for place, state in enumerate(STATES) if place}

    @cached_property
    def periods(self) -> list[Period]:
        return accounts(self.tally, self.moments_us, settled_from_us=self.settled_from_us)

    @property
    def transitions_SS(self) -> NDArray[np.int64] | None:
        """Users from state to state over the last period; None without one. Row cold: who came."""
        if not self.periods:
            return None
        flows = self.tally.weekly_SS if period_weeks(len(self.moments_us)) == 1 else self.tally.monthly_SS
        newest: NDArray[np.int64] = flows[-1]
        return newest

    @cached_property
    def forecast(self) -> MixForecast | None:
        first_settled = int(np.searchsorted(self.moments_us, self.settled_from_us))
        return forecast_mix(self.tally, first_settled=first_settled)

    @property
    def missing(self) -> dict[str, str]:
        """What could not be measured, and why."""
        is_there = {"growth": bool(self.periods), "forecast": self.forecast is not None}
        return {name: TOO_SHORT[name] for name, is_measured in is_there.items() if not is_measured}

    def count(self, offsets: NDArray[np.int64], times_us: NDArray[np.int64]) -> LifecycleOverview:
        """The overview of these users alone; `offsets` [U + 1] and `times_us` [N] as in history.timelines."""
        states_UM = states_at(offsets, times_us, self.moments_us, self.thresholds)
        return self._with(tally(states_UM), count_cohorts(offsets, times_us, self.cohorts))

    def __add__(self, other: LifecycleOverview) -> LifecycleOverview:
        return self._with(self.tally + other.tally, self.cohorts + other.cohorts)

    def _with(self, tallied: Tally, cohorts: Cohorts) -> LifecycleOverview:
        return LifecycleOverview(self.first_us, self.as_of_us, self.thresholds, tallied, cohorts)

    def counts(self) -> dict[str, Any]:
        """What adds up over users, as JSON values."""
        return {
            "states": [list(map(int, row)) for row in self.tally.counts_MS],
            "weekly": self.tally.weekly_SS.tolist(),
            "monthly": self.tally.monthly_SS.tolist(),
            "cohorts": self.cohorts.active_CK.tolist(),
        }

    def with_counts(self, counts: Mapping[str, Any]) -> LifecycleOverview:
        """The overview with these counts (see `counts`) of the same log, moment and thresholds."""
        empty, num = self.cohorts, len(STATES)
        tallied = Tally(
            np.asarray(counts["states"], np.int64),
            np.asarray(counts["weekly"], np.int64).reshape(-1, num, num),
            np.asarray(counts["monthly"], np.int64).reshape(-1, num, num),
        )
        active = np.asarray(counts["cohorts"], np.int64)
        return self._with(tallied, Cohorts(empty.unit, empty.starts_us, empty.end_us, empty.as_of_us, active))

    def metrics(self) -> dict[str, float]:
        """Flat `lifecycle.*`: the last period's accounts, the errors of both forecasts; the unmeasured are absent."""
        found: dict[str, float | None] = {}
        if self.periods:
            last = self.periods[-1]
            found |= {
                "lifecycle.period_days": days_of(self.periods),
                "lifecycle.active": last.active,
                "lifecycle.new": last.new,
                "lifecycle.resurrected": last.resurrected,
                "lifecycle.retained": last.retained,
                "lifecycle.churned": last.churned,
                "lifecycle.net_growth": last.net,
                "lifecycle.quick_ratio": last.quick_ratio,
            }
        if (forecast := self.forecast) is not None and forecast.backtest is not None:
            found |= {
                "lifecycle.forecast_mae": forecast.mae,
                "lifecycle.naive_mae": forecast.naive_mae,
                "lifecycle.forecast_origins": len(forecast.backtest.origins),
                "lifecycle.forecast_horizon_days": HORIZON_DAYS,
            }
        means = self.cohorts.means_K
        if len(means) > 1 and np.isfinite(means[1]):
            found[f"lifecycle.cohort_share_after_1_{self.cohorts.unit}"] = float(means[1])
        return {name: float(value) for name, value in found.items() if value is not None}

    def to_dict(self) -> dict[str, Any]:
        """The counts, and the derived views for readers that do not know Sonder."""
        return {
            "first_us": self.first_us,
            "as_of_us": self.as_of_us,
            "thresholds": self.thresholds.to_dict(),
            "state_names": list(STATES),
            "moments": [iso_day(time_us) for time_us in self.moments_us],
            "counts": self.counts(),
            "accounts": [asdict(p) | {"net": p.net, "quick_ratio": p.quick_ratio} for p in self.periods],
            "forecast": _forecast_dict(self.forecast),
            "cohort_unit": self.cohorts.unit,
            "cohort_starts": [iso_day(time_us) for time_us in self.cohorts.starts_us],
            "is_last_period_finished": self.cohorts.is_last_finished,
            "metrics": self.metrics(),
            "missing": self.missing,
        }

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> LifecycleOverview:
        thresholds = LifecycleThresholds.from_dict(dict(content["thresholds"]))
        return cls.empty(content["first_us"], content["as_of_us"], thresholds).with_counts(content["counts"])


def iso_day(time_us: int | np.int64) -> str:
    """The UTC day of a moment."""
    return f"{datetime.fromtimestamp(int(time_us) / 1_000_000, tz=UTC):%Y-%m-%d}"


def _forecast_dict(forecast: MixForecast | None) -> dict[str, Any] | None:
    if forecast is None:
        return None
    tested = forecast.backtest
    by_state = {} if tested is None else {"transitions": tested.transitions_OS, "naive": tested.naive_OS}
    return {
        "method": forecast.method,
        "horizon_days": HORIZON_DAYS,
        "users": _by_state(forecast.users_S),
        "shares": _by_state(forecast.shares_S),
        "low": None if forecast.low_S is None else _by_state(forecast.low_S),
        "high": None if forecast.high_S is None else _by_state(forecast.high_S),
        "coverage": forecast.coverage,
        "mae": forecast.mae,
        "naive_mae": forecast.naive_mae,
        "mae_by_state": {name: _by_state(errors.mean(axis=0)) for name, errors in by_state.items()},
        "num_origins": 0 if tested is None else len(tested.origins),
        "reason": forecast.reason,
    }


def _by_state(values_S: NDArray[np.float64]) -> dict[str, float]:
    return {state: float(values_S[place]) for place, state in enumerate(STATES) if place}
