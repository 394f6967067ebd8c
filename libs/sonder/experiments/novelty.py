"""The primary metric's effect by day of first exposure, and all together as the days went by.

A change that only delights because it is new has a larger effect in early cohorts than in late ones, or the reverse
where users must learn it first. The trend is a weighted regression of the cohorts' differences on their day, with
their known variances (statsmodels WLS); beside it, the first half of the cohorts against the second.
Limits: frequent users are exposed first, so a trend may be who came and not when; the cuts by lifecycle tell.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from sonder.experiments.effects import always_valid, estimate, standard_errors
from sonder.experiments.moments import Columns, moments, pooled
from sonder.experiments.results import ByDay, CohortDay, CumulativeDay
from sonder.experiments.specification import MetricSpec

if TYPE_CHECKING:
    from tea_tasting.aggr import Aggregates

MIN_COHORT_USERS = 50  # of each arm: days are put together until there are as many
Days = Mapping[date, "Aggregates"]


@dataclass(frozen=True)
class Question:
    """What is compared, and how sure the answer must be."""

    metric: MetricSpec
    columns: Columns
    alpha: float
    rho2: float | None


def by_day(users: pl.DataFrame, control: str, arm: str, question: Question, until: datetime) -> ByDay:
    """Of mature users, capped already."""
    cohorts = _cohorts(*_days(users, control, arm, pl.col("exposed_at").dt.date(), question), question)
    window = timedelta(days=question.metric.window_days)
    # The day at whose end the user's window was over; at the last day, until `until`.
    known_on = pl.min_horizontal((pl.col("exposed_at") + window).dt.date(), pl.lit(until.astimezone(UTC).date()))
    cumulative = _cumulative(*_days(users, control, arm, known_on, question), question)
    days = [(part.first.toordinal() + part.last.toordinal()) / 2 for part, _ in cohorts]
    differences = [part.interval.difference or 0.0 for part, _ in cohorts]
    errors = [error for _, error in cohorts]
    trend, p_trend = trend_of(days, differences, errors)
    contrast, p_contrast = _early_minus_late(differences, errors)
    return ByDay(
        arm=arm,
        cohorts=tuple(part for part, _ in cohorts),
        trend_per_day=trend,
        p_trend=p_trend,
        early_minus_late=contrast,
        p_early_late=p_contrast,
        cumulative=cumulative,
    )


def _days(users: pl.DataFrame, control: str, arm: str, day: pl.Expr, question: Question) -> tuple[Days, Days]:
    groups = moments(users.with_columns(day.alias("day")), ["arm", "day"], question.columns)
    by_arm = [{key[1]: groups[key] for key in sorted(groups) if key[0] == name} for name in (control, arm)]
    return by_arm[0], by_arm[1]


def _cohorts(control: Days, treatment: Days, question: Question) -> list[tuple[CohortDay, float]]:
    """Neighbouring days with enough users, their difference and its standard error."""
    found = []
    waiting: list[date] = []
    for day in sorted({*control, *treatment}):
        waiting.append(day)
        left, right = (pooled([days[one] for one in waiting if one in days]) for days in (control, treatment))
        if left is None or right is None or min(left.count(), right.count()) < MIN_COHORT_USERS:
            continue
        made = estimate(left, right, question.columns, question.metric.kind, question.alpha)
        if made is None:
            continue
        counts = (left.count(), right.count())
        part = CohortDay(
            first=waiting[0], last=day, num_control=counts[0], num_treatment=counts[1], interval=made.interval
        )
        found.append((part, standard_errors(left, right, question.columns)[0]))
        waiting = []
    return found


def _cumulative(control: Days, treatment: Days, question: Question) -> tuple[CumulativeDay, ...]:
    found = []
    left: Aggregates | None = None
    right: Aggregates | None = None
    for day in sorted({*control, *treatment}):
        left, right = _plus(left, control.get(day)), _plus(right, treatment.get(day))
        made = estimate(left, right, question.columns, question.metric.kind, question.alpha)
        if made is None or left is None or right is None:
            continue
        found.append(
            CumulativeDay(
                day=day,
                num_control=left.count(),
                num_treatment=right.count(),
                fixed=made.interval,
                always_valid=None
                if question.rho2 is None
                else always_valid(left, right, question.columns, question.rho2, question.alpha),
            )
        )
    return tuple(found)


def _plus(total: Aggregates | None, part: Aggregates | None) -> Aggregates | None:
    return pooled([one for one in (total, part) if one is not None])


def trend_of(
    days: Sequence[float], differences: Sequence[float], errors: Sequence[float]
) -> tuple[float | None, float | None]:
    """Slope per day and its p; (None, None) of fewer than three cohorts."""
    if len(days) < 3:
        return None, None
    from statsmodels.regression.linear_model import WLS

    design = np.column_stack([np.ones(len(days)), np.asarray(days) - np.mean(days)])
    fitted = WLS(np.asarray(differences), design, weights=1 / np.square(errors)).fit(cov_type="fixed scale")
    return float(fitted.params[1]), float(fitted.pvalues[1])


def _early_minus_late(differences: Sequence[float], errors: Sequence[float]) -> tuple[float | None, float | None]:
    """First half of the cohorts minus the second, each by inverse variance, and its p; None of fewer than two."""
    if len(differences) < 2:
        return None, None
    from scipy.special import ndtr

    half = len(differences) // 2
    weights = 1 / np.square(errors)
    parts = slice(0, half), slice(half, None)
    means = [float(np.average(np.asarray(differences)[part], weights=weights[part])) for part in parts]
    error = float(np.sqrt(sum(1 / weights[part].sum() for part in parts)))
    contrast = means[0] - means[1]
    return contrast, float(2 * ndtr(-abs(contrast) / error))
