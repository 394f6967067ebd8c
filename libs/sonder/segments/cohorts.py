"""The cohort triangle: of the users first seen in a calendar period, the share that was active so many periods later.

Periods are weeks from Monday in a log of up to half a year, months in a longer one, both in UTC. Active in a period is
who has an event in it, whatever its action. Only events before `as_of` are counted, and counts add over disjoint sets
of users.
A period that has not ended by `as_of` is unfinished: its cells say how many were active so far, they are marked, and no
mean reads them. A period whose last day the log has reached counts as finished: logs end minutes before midnight.
Limits: the first cohort holds everybody who had been there before the log began (`is_censored`), so it keeps more.
Shapes: C cohorts = P periods, in order; K = P periods later, 0 the period of the first event itself.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sonder.history.timelines import MICROSECONDS_PER_DAY
from sonder.segments.moments import is_told_by_week

MOST_PERIODS = 120  # the newest; who came before them is in none of the cohorts
WEEK, MONTH = "week", "month"


@dataclass(frozen=True)
class Cohorts:
    """Counts of a triangle; row c holds what happened to the users first seen in the period that begins at start c."""

    unit: str  # WEEK or MONTH
    starts_us: NDArray[np.int64]  # [C]
    end_us: int  # of the last period
    as_of_us: int
    active_CK: NDArray[np.int64]  # users of cohort c active k periods later; column 0 is the size of the cohort

    @property
    def sizes_C(self) -> NDArray[np.int64]:
        return self.active_CK[:, 0]

    @property
    def is_last_finished(self) -> bool:
        return self.as_of_us > self.end_us - MICROSECONDS_PER_DAY

    @property
    def is_finished_CK(self) -> NDArray[np.bool_]:
        """Cells whose period has ended; those after `as_of` have not."""
        num = len(self.starts_us)
        finished = num if self.is_last_finished else num - 1
        is_finished: NDArray[np.bool_] = np.add.outer(np.arange(num), np.arange(num)) < finished
        return is_finished

    @property
    def is_begun_CK(self) -> NDArray[np.bool_]:
        """Cells of the triangle: finished ones, and the unfinished ones of the running period."""
        num = len(self.starts_us)
        is_begun: NDArray[np.bool_] = np.add.outer(np.arange(num), np.arange(num)) < num
        return is_begun

    @property
    def shares_CK(self) -> NDArray[np.float64]:
        """Share of the cohort active; NaN outside the triangle and where nobody came."""
        sizes = np.where(self.sizes_C > 0, self.sizes_C, np.nan)[:, None]
        shares: NDArray[np.float64] = np.where(self.is_begun_CK, self.active_CK / sizes, np.nan)
        return shares

    @property
    def means_K(self) -> NDArray[np.float64]:
        """Share active k periods later of all users whose k-th period has ended, the censored first cohort left out."""
        counted = self.is_finished_CK.copy()
        if len(counted) > 1:
            counted[0] = False
        users = (counted * self.sizes_C[:, None]).sum(axis=0)
        active = (counted * self.active_CK).sum(axis=0)
        means: NDArray[np.float64] = np.where(users > 0, active / np.maximum(users, 1), np.nan)
        return means

    def __add__(self, other: Cohorts) -> Cohorts:
        return Cohorts(self.unit, self.starts_us, self.end_us, self.as_of_us, self.active_CK + other.active_CK)


def empty_cohorts(first_us: int, as_of_us: int) -> Cohorts:
    """The periods from the first event to the last one before `as_of`, with nobody in them yet."""
    unit = WEEK if is_told_by_week(first_us, as_of_us) else MONTH
    moments = np.array([first_us, max(first_us, as_of_us - 1)], "datetime64[us]")
    if unit == MONTH:
        first, last = moments.astype("datetime64[M]")
        starts = np.arange(first, last + 2)
    else:
        thursdays = moments.astype("datetime64[W]")  # numpy's weeks begin on a Thursday, as 1970 did
        days = moments.astype("datetime64[D]")
        first, last = days - (((days - thursdays.astype("datetime64[D]")).astype(np.int64) + 3) % 7)
        starts = np.arange(first, last + 8, 7)
    starts_us = starts.astype("datetime64[us]").astype(np.int64)[-MOST_PERIODS - 1 :]
    num = len(starts_us) - 1
    return Cohorts(unit, starts_us[:-1], int(starts_us[-1]), as_of_us, np.zeros((num, num), np.int64))


def count_cohorts(offsets: NDArray[np.int64], times_us: NDArray[np.int64], empty: Cohorts) -> Cohorts:
    """The triangle of these users; `offsets` [U + 1] and `times_us` [N] as in history.timelines."""
    num = len(empty.starts_us)
    users = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    period_N = np.searchsorted(empty.starts_us, times_us, side="right") - 1
    starts_visit = np.ones(len(users), dtype=np.bool_)
    starts_visit[1:] = (np.diff(users) != 0) | (np.diff(period_N) != 0)
    is_counted = starts_visit & (times_us < empty.as_of_us)
    visitors, periods = users[is_counted], period_N[is_counted]
    first_U = np.full(len(offsets) - 1, -1)
    first_U[visitors[::-1]] = periods[::-1]  # the oldest of a user is written last
    first = first_U[visitors]
    is_known = first >= 0
    cells = first[is_known] * num + (periods - first)[is_known]
    active = np.bincount(cells, minlength=num * num).reshape(num, num)
    return Cohorts(empty.unit, empty.starts_us, empty.end_us, empty.as_of_us, active)
