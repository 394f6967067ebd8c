"""Growth accounting: how many users each state holds at period ends, and who came, came back, stayed and left between.

A user is active in any state but cold and dormant. Between two moments t - 1 and t, by the states at both:
new          not seen before t - 1, active at t      retained   active at both
resurrected  dormant at t - 1, active at t           churned    active at t - 1, dormant at t
so that active_t = active_(t-1) + new + resurrected - churned, exactly.
Periods are whole weeks, or four of them in a log of more than half a year, counted back from `as_of`: none of them is
unfinished, and the last mix is that of the profiles. All counts add over disjoint sets of users.
Limits: who left and returned within one period counts as retained, who came and went dormant within one as neither.
A log does not know who was there before it: until it is dormant_days old nobody can be dormant and everybody looks
new. Periods that begin earlier are not `is_settled`.
Shapes: U users, M moments (weekly, ascending), S = 7 states.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sonder.history.timelines import MICROSECONDS_PER_DAY
from sonder.segments.lifecycle import COLD, DORMANT, STATES, transitions
from sonder.segments.moments import DAYS_PER_WEEK, HALF_YEAR_WEEKS

WEEKS_PER_MONTH = 4
_IS_ACTIVE = np.array([place not in (COLD, DORMANT) for place in range(len(STATES))])


@dataclass(frozen=True)
class Tally:
    """Counts over a set of users; those of disjoint sets add up. Who has not come yet is in none of them."""

    counts_MS: NDArray[np.int64]  # users by state at each moment
    weekly_SS: NDArray[np.int64]  # [M - 1, S, S]: state at a moment (row), state one week later (column)
    monthly_SS: NDArray[np.int64]  # [M - 4, S, S]: the same four weeks later

    def __add__(self, other: Tally) -> Tally:
        return Tally(
            self.counts_MS + other.counts_MS, self.weekly_SS + other.weekly_SS, self.monthly_SS + other.monthly_SS
        )

    @classmethod
    def empty(cls, num_moments: int) -> Tally:
        num = len(STATES)
        weekly, monthly = (max(0, num_moments - weeks) for weeks in (1, WEEKS_PER_MONTH))
        return cls(
            np.zeros((num_moments, num), np.int64),
            np.zeros((weekly, num, num), np.int64),
            np.zeros((monthly, num, num), np.int64),
        )


@dataclass(frozen=True)
class Period:
    """The accounts of the users between two moments, `start_us` and `end_us`."""

    start_us: int
    end_us: int
    is_settled: bool  # the log was dormant_days old when the period began
    active_before: int
    new: int
    resurrected: int
    retained: int
    churned: int

    @property
    def active(self) -> int:
        """Active at the end."""
        return self.retained + self.new + self.resurrected

    @property
    def net(self) -> int:
        return self.new + self.resurrected - self.churned

    @property
    def quick_ratio(self) -> float | None:
        """Users gained for each one lost; None if nobody was lost."""
        return (self.new + self.resurrected) / self.churned if self.churned else None


def tally(states_UM: NDArray[np.int8]) -> Tally:
    """Count states at weekly moments (segments.moments.states_at) and the ways between them."""
    num_moments = states_UM.shape[1]
    found = Tally.empty(num_moments)
    for moment in range(num_moments):
        found.counts_MS[moment] = np.bincount(states_UM[:, moment], minlength=len(STATES))
        for weeks, flows in ((1, found.weekly_SS), (WEEKS_PER_MONTH, found.monthly_SS)):
            if moment >= weeks:
                flows[moment - weeks] = transitions(states_UM[:, moment - weeks], states_UM[:, moment])
    # Cold here are users whose first event is still to come: no number of a moment may know of them.
    found.counts_MS[:, COLD] = 0
    found.weekly_SS[:, COLD, COLD] = 0
    found.monthly_SS[:, COLD, COLD] = 0
    return found


def period_weeks(num_moments: int) -> int:
    """Length of the periods that growth is told in: a week, or four in a log of more than half a year."""
    return 1 if num_moments - 1 <= HALF_YEAR_WEEKS else WEEKS_PER_MONTH


def accounts(counted: Tally, moments_us: NDArray[np.int64], *, settled_from_us: int) -> list[Period]:
    """The periods that end at the last moment and whole periods before it, oldest first; empty for one moment."""
    weeks = period_weeks(len(moments_us))
    flows = counted.weekly_SS if weeks == 1 else counted.monthly_SS
    starts = range((len(moments_us) - 1) % weeks, len(moments_us) - weeks, weeks)
    return [
        account(
            flows[start],
            start_us=int(moments_us[start]),
            end_us=int(moments_us[start + weeks]),
            settled_from_us=settled_from_us,
        )
        for start in starts
    ]


def account(flow_SS: NDArray[np.int64], *, start_us: int, end_us: int, settled_from_us: int) -> Period:
    """The accounts of one flow between two moments."""
    before_active = flow_SS[_IS_ACTIVE]
    return Period(
        start_us=start_us,
        end_us=end_us,
        is_settled=start_us >= settled_from_us,
        active_before=int(before_active.sum()),
        new=int(flow_SS[COLD, _IS_ACTIVE].sum()),
        resurrected=int(flow_SS[DORMANT, _IS_ACTIVE].sum()),
        retained=int(before_active[:, _IS_ACTIVE].sum()),
        churned=int(before_active[:, DORMANT].sum()),
    )


def num_active(counts_S: NDArray[np.int64]) -> int:
    """Users of the active states."""
    return int(counts_S[_IS_ACTIVE].sum())


def settled_from(first_us: int, dormant_days: int) -> int:
    """The moment from which on a log that begins at `first_us` can tell the dormant from those not yet seen."""
    return first_us + dormant_days * MICROSECONDS_PER_DAY


def days_of(periods: Sequence[Period]) -> int:
    """Length of the periods in days; a week where there are none."""
    if not periods:
        return DAYS_PER_WEEK
    return (periods[-1].end_us - periods[-1].start_us) // MICROSECONDS_PER_DAY
