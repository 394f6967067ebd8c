"""The days and shares that separate lifecycle states; what the configuration leaves open comes from the log's rhythm.

Let the gaps be the numbers of days between consecutive active days (UTC) of the same user, over all users.
dormant_days         95 % quantile of the gaps: of those who came back, 19 of 20 had by then; 7 at least, a third of
                     the log at most. It is also the window that active days are counted in.
new_days             75 % quantile of the gaps: the time in which most come back once; 7 at least, dormant_days at most.
core_active_share    80 % quantile, over the users that are neither new nor dormant, of the share of days of the window
                     with an event; three active days at least
casual_active_share  40 % quantile of the same; two active days at least, and less than the core share
Limits: a log in which nobody comes back has no gaps; then dormant_days is a third of the log.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sonder.core.config import SegmentsConfig
from sonder.history.timelines import MICROSECONDS_PER_DAY, Timelines

DORMANT_GAP_QUANTILE = 0.95
NEW_GAP_QUANTILE = 0.75
CORE_SHARE_QUANTILE = 0.8
CASUAL_SHARE_QUANTILE = 0.4
LEAST_DAYS = 7


@dataclass(frozen=True)
class LifecycleThresholds:
    new_days: int
    dormant_days: int  # also the window of the active shares
    core_active_share: float
    casual_active_share: float

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> LifecycleThresholds:
        return cls(**content)


def derive_thresholds(timelines: Timelines, *, end_us: int, config: SegmentsConfig) -> LifecycleThresholds:
    """Thresholds from the events before `end_us`; what the configuration gives is taken as it is."""
    history = timelines.before(end_us)
    span_days = (end_us - int(history.times_us.min(initial=end_us))) / MICROSECONDS_PER_DAY
    gaps = _gaps_between_active_days(history)
    longest = max(LEAST_DAYS, int(span_days / 3))
    dormant = config.dormant_days or _clip(_quantile(gaps, DORMANT_GAP_QUANTILE, longest), LEAST_DAYS, longest)
    new = config.new_days or _clip(_quantile(gaps, NEW_GAP_QUANTILE, LEAST_DAYS), min(LEAST_DAYS, dormant), dormant)
    shares = _settled_active_days(history, end_us=end_us, new_days=new, window_days=dormant) / dormant
    core = config.core_active_share or max(_quantile(shares, CORE_SHARE_QUANTILE, 0.0), min(3 / dormant, 1.0))
    casual = config.casual_active_share or max(_quantile(shares, CASUAL_SHARE_QUANTILE, 0.0), min(2 / dormant, 1.0))
    if casual >= core:  # many users with the same few active days
        casual = core * 2 / 3
    return LifecycleThresholds(new, dormant, core, casual)


def _gaps_between_active_days(history: Timelines) -> NDArray[np.float64]:
    """Days between consecutive active days of the same user, all users together."""
    days, users = history.times_us // MICROSECONDS_PER_DAY, history.user_rows
    gaps, same_user = np.diff(days), np.diff(users) == 0
    between: NDArray[np.float64] = gaps[same_user & (gaps > 0)].astype(np.float64)
    return between


def _settled_active_days(history: Timelines, *, end_us: int, new_days: int, window_days: int) -> NDArray[np.float64]:
    """Active days in the last `window_days` of the users with any who are not new."""
    ages = (end_us - 1 - history.times_us) // MICROSECONDS_PER_DAY
    users = history.user_rows
    starts_day = (np.diff(ages, prepend=-1) != 0) | (np.diff(users, prepend=-1) != 0)
    active = np.bincount(users[starts_day & (ages < window_days)], minlength=history.num_users)
    oldest = np.full(history.num_users, -1)
    np.maximum.at(oldest, users, ages)
    return active[(active > 0) & (oldest >= new_days)].astype(np.float64)


def _quantile(values: NDArray[np.float64], quantile: float, otherwise: float) -> float:
    return float(np.quantile(values, quantile)) if len(values) else float(otherwise)


def _clip(value: float, low: int, high: int) -> int:
    return max(low, min(high, math.ceil(value)))
