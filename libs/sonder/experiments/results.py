"""What an analysis says: frozen records, ready for JSON. A number that does not exist (infinite, undefined) is None.

Relative differences are of the control's mean. An interval's level stands beside it.
"""

from __future__ import annotations

import math
from datetime import date, datetime
from typing import Annotated, Literal

from pydantic import BeforeValidator, ConfigDict

from sonder.core.section import Section
from sonder.experiments.specification import Kind

Decision = Literal["blocked", "ship", "no", "continue", "no_effect"]
Role = Literal["primary", "guardrail", "secondary"]
GuardrailState = Literal["holds", "broken", "undecided"]


def _finite(value: object) -> object:
    return None if isinstance(value, float) and not math.isfinite(value) else value


Finite = Annotated[float | None, BeforeValidator(_finite)]


class Record(Section):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Interval(Record):
    """A difference of treatment and control with its bounds, absolute and relative."""

    difference: Finite
    lower: Finite
    upper: Finite
    relative: Finite
    relative_lower: Finite
    relative_upper: Finite
    p_value: Finite  # of no difference; of an always-valid interval: valid whenever it is looked at
    confidence: float  # that the interval, two-sided, holds the truth

    @property
    def excludes_zero(self) -> bool:
        return self.lower is not None and self.upper is not None and (self.lower > 0 or self.upper < 0)


class Estimate(Record):
    """Means of both arms and their difference, at one fixed look."""

    control: Finite
    treatment: Finite
    interval: Interval
    test: str  # which, of which library


class Capping(Record):
    """Values above the quantile of all arms' users were set to it. None: the quantile was 0, nothing was capped."""

    quantile: float
    value: Finite
    num_capped: int
    per_value: Finite = None  # of a ratio's denominator
    per_num_capped: int = 0


class Survival(Record):
    """Of a time to event, beside the difference of mean days within the window (restricted mean survival time)."""

    hazard_ratio: Finite
    lower: Finite
    upper: Finite
    confidence: float
    p_log_rank: Finite
    num_events_control: int
    num_events_treatment: int


class Effect(Record):
    """One metric in one arm against the control."""

    metric: str
    kind: Kind
    role: Role
    arm: str
    wanted: Literal["increase", "decrease"]
    num_control: int  # whose window is over
    num_treatment: int
    num_immature_control: int  # exposed, but the window is not over: left out
    num_immature_treatment: int
    estimate: Estimate | None  # CUPED-adjusted if there is behaviour before exposure; None: too few users, or all alike
    unadjusted: Estimate | None  # beside an adjusted one
    variance_reduction: Finite  # by CUPED: 0.3 is as good as 1 / 0.7 times the users
    always_valid: Interval | None  # None below `sequential.MIN_USERS` users of an arm
    p_adjusted: Finite  # for how many were looked at; see `adjustment`
    adjustment: str
    capping: Capping | None
    survival: Survival | None
    note: str = ""


class GuardrailResult(Record):
    """Whether a metric got worse by more than the margin of the control's mean; level alpha to each side."""

    metric: str
    arm: str
    margin: float
    state: GuardrailState
    relative_lower: Finite
    relative_upper: Finite
    confidence: float
    basis: Literal["always-valid", "planned sample"]


class SampleRatioDay(Record):
    day: date
    counts: dict[str, int]
    p_value: Finite
    p_adjusted: Finite  # Holm, over the days


class SampleRatioCheck(Record):
    """Whether the arms have as many users as their weights say; if not, nothing else can be believed."""

    counts: dict[str, int]
    expected: dict[str, float]
    p_value: Finite
    is_broken: bool
    by_day: tuple[SampleRatioDay, ...]
    num_in_several: int
    share_in_several: float
    too_many_in_several: bool


class CutEffect(Record):
    """The primary metric among users of one lifecycle state or segment; without an interval if they are too few."""

    value: str
    num_control: int
    num_treatment: int
    interval: Interval | None
    refused: str = ""


class Cut(Record):
    by: str
    arm: str
    effects: tuple[CutEffect, ...]
    p_differ: Finite  # Cochran's Q: that the effect is the same in all of them
    p_differ_adjusted: Finite  # Holm, over cuts and arms


class CohortDay(Record):
    """Users first exposed on these days (one, or neighbours until there are enough)."""

    first: date
    last: date
    num_control: int
    num_treatment: int
    interval: Interval


class CumulativeDay(Record):
    """All users whose window was over at the end of the day."""

    day: date
    num_control: int
    num_treatment: int
    fixed: Interval
    always_valid: Interval | None


class ByDay(Record):
    arm: str
    cohorts: tuple[CohortDay, ...]
    trend_per_day: Finite  # change of the absolute difference with each later day of first exposure
    p_trend: Finite
    early_minus_late: Finite  # first half of the cohorts against the second
    p_early_late: Finite
    cumulative: tuple[CumulativeDay, ...]


class ArmVerdict(Record):
    arm: str
    decision: Decision
    reasons: tuple[str, ...]


class Verdict(Record):
    """`arm` is the one to ship; reasons are sentences that hold the numbers."""

    decision: Decision
    arm: str | None
    reasons: tuple[str, ...]
    by_arm: tuple[ArmVerdict, ...] = ()


class PlannedSize(Record):
    """The size that was fixed before, or estimated from all arms together, which tells nothing of their difference."""

    source: Literal["plan", "all arms together"]
    control: str
    users_by_arm: dict[str, int]
    alpha_of_each_arm: float
    last_level: float  # of the test at the planned size; looking early has used up the rest of alpha
    rho2_by_arm: dict[str, float]  # the always-valid intervals' tuning [1 / users], from the planned size

    def num_users(self, arm: str) -> int:
        """Of the arm and the control together."""
        return self.users_by_arm[self.control] + self.users_by_arm[arm]


class Analysis(Record):
    experiment: str
    until: datetime
    planned: PlannedSize | None  # None: nothing to plan from yet, so nothing is decided
    srm: SampleRatioCheck
    effects: tuple[Effect, ...]
    guardrails: tuple[GuardrailResult, ...]
    cuts: tuple[Cut, ...]
    by_day: tuple[ByDay, ...]
    verdict: Verdict

    def effect(self, metric: str, arm: str) -> Effect:
        return next(one for one in self.effects if (one.metric, one.arm) == (metric, arm))
