"""How many users an experiment needs, and how long that takes, from behaviour before it.

Power by tea-tasting's own solver, on the baseline's moments, with and without what CUPED takes away. The test at the
planned size has a level a little below alpha (`sequential.last_level`), as the looks before it are free for the reader
but not for the error: about 5 % more users than if nobody looked. Stopping only by the always-valid interval would
need more than twice as many to have the same power at one size.
Guardrails are tested one-sided: that the metric is not worse by its margin, on the logarithm of the ratio of means.
Limits: an effect is taken to be proportional (power); newly exposed users a day are taken as constant, while a
product's daily users soon repeat themselves.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

import polars as pl

from sonder.core.errors import DataError
from sonder.experiments import sequential
from sonder.experiments.enrolment import days_to_enrol, enrolled
from sonder.experiments.moments import Columns, capped, mature, moments
from sonder.experiments.power import Size, Solver
from sonder.experiments.results import Finite, Record, Role
from sonder.experiments.specification import Experiment, MetricSpec

if TYPE_CHECKING:
    from tea_tasting.aggr import Aggregates

_ALL = "all"


class MetricPlan(Record):
    """`looked_once`: if nobody looks before; `planned`: with looks at any time. Both without and with CUPED."""

    metric: str
    role: Role
    num_users: int  # of the baseline
    mean: float  # of a ratio: numerator over denominator
    deviation: float  # of a user; of a ratio: by the delta method
    correlation: Finite  # with the same number before, which CUPED removes
    variance_reduction: float
    effect: float | None  # relative, that must be found; of a guardrail, the margin; of a secondary metric none
    sides: Literal["one-sided", "two-sided"]
    level: float  # of the one test if nobody looks before, after division by the number of treatment arms
    planned_level: float
    looked_once: Size | None
    looked_once_cuped: Size | None
    planned: Size | None
    planned_cuped: Size | None
    detectable: Finite = None  # relative effect found with the power asked for, of all users until `max_days`

    @property
    def needed(self) -> Size | None:
        return self.planned_cuped or self.planned


class Plan(Record):
    experiment: str
    users_by_arm: dict[str, int]  # what the primary metric and every guardrail need
    decided_by: str  # the metric that needs most
    alpha_of_each_arm: float
    power: float
    price_of_looking: float  # 0.05: 5 % more users than if nobody looked before
    always_valid_width: float  # at the planned size, of the interval that holds at every look over the fixed one
    users_per_day: float | None
    users_until_max_days: int | None
    enrolment_days: Finite = None  # until the last needed user is exposed
    days: Finite = None  # and the window of the slowest metric is over
    is_feasible: bool | None = None  # enrolled within `max_days`
    metrics: tuple[MetricPlan, ...]

    @property
    def total_users(self) -> int:
        return sum(self.users_by_arm.values())

    def metric(self, name: str) -> MetricPlan:
        return next(one for one in self.metrics if one.metric == name)


def plan(experiment: Experiment, baseline: pl.DataFrame, *, users_per_day: float | None) -> Plan:
    """The size from a user frame of a past period without experiment (its arms are not looked at)."""
    reachable = None if users_per_day is None else enrolled(experiment, users_per_day, experiment.max_days)
    metrics = tuple(_metric_plan(experiment, metric, baseline, reachable) for metric in experiment.metrics)
    deciding = max((one for one in metrics if one.needed), key=lambda one: one.needed.total if one.needed else 0)
    assert deciding.needed is not None, "the primary metric needs some"
    primary = next(one for one in metrics if one.metric == experiment.primary)
    assert primary.planned is not None, "it has an effect to find"
    assert primary.looked_once is not None, "it has an effect to find"
    days = None if users_per_day is None else days_to_enrol(experiment, users_per_day, deciding.needed.total)
    return Plan(
        experiment=experiment.name,
        users_by_arm=deciding.needed.by_arm,
        decided_by=deciding.metric,
        alpha_of_each_arm=primary.level,
        power=experiment.power,
        price_of_looking=primary.planned.total / primary.looked_once.total - 1,
        always_valid_width=_width(primary.level),
        users_per_day=users_per_day,
        users_until_max_days=None if reachable is None else int(reachable),
        enrolment_days=days,
        days=None if days is None else days + experiment.window_days,
        is_feasible=None if days is None else days <= experiment.max_days,
        metrics=metrics,
    )


def role_of(experiment: Experiment, metric: str) -> Role:
    if metric == experiment.primary:
        return "primary"
    return "guardrail" if any(guardrail.metric == metric for guardrail in experiment.guardrails) else "secondary"


def _metric_plan(
    experiment: Experiment, metric: MetricSpec, baseline: pl.DataFrame, reachable: float | None
) -> MetricPlan:
    data, columns = _moments_of(metric, baseline)
    role = role_of(experiment, metric.name)
    margin = min((one.margin for one in experiment.guardrails if one.metric == metric.name), default=None)
    is_guarded = role == "guardrail"
    effect = margin if is_guarded else experiment.minimum_effect if role == "primary" else None
    num_treatments = len(experiment.arms) - 1
    level = experiment.alpha if is_guarded else experiment.alpha / num_treatments
    planned_level = sequential.last_level(2 * level) / 2 if is_guarded else sequential.last_level(level)
    found = effect
    if is_guarded and margin is not None:
        # Shown on the logarithm of the ratio, a margin of 5 % down is a little further away than one of 5 % up.
        found = abs(math.log1p(margin if metric.wanted == "decrease" else -margin))
    has_past = columns.pre is not None
    solver = Solver(experiment, metric, data, is_guarded)
    variance, adjusted = (solver.variance(one) for one in (columns.unadjusted, columns))
    return MetricPlan(
        metric=metric.name,
        role=role,
        num_users=data.count(),
        mean=solver.mean(columns),
        deviation=math.sqrt(variance),
        correlation=solver.correlation(columns),
        variance_reduction=1 - adjusted / variance,
        effect=effect,
        sides="one-sided" if is_guarded else "two-sided",
        level=level,
        planned_level=planned_level,
        looked_once=solver.size(columns.unadjusted, level, found),
        looked_once_cuped=solver.size(columns, level, found) if has_past else None,
        planned=solver.size(columns.unadjusted, planned_level, found),
        planned_cuped=solver.size(columns, planned_level, found) if has_past else None,
        detectable=None if reachable is None else solver.detectable(columns, planned_level, reachable),
    )


def _moments_of(metric: MetricSpec, baseline: pl.DataFrame) -> tuple[Aggregates, Columns]:
    """Of everybody whose window is over; DataError if nothing can be planned from it."""
    users, _ = capped(mature(baseline, metric), metric)
    columns = Columns.of(metric, users)
    groups = moments(users.with_columns(pl.lit(_ALL).alias(_ALL)), [_ALL], columns)
    data = groups.get((_ALL,))
    per = columns.per
    if (
        data is None
        or data.count() < sequential.MIN_USERS
        or data.mean(columns.value) <= 0
        or (per is not None and data.mean(per) <= 0)
        or data.ratio_var(columns.value, per) <= 0
    ):
        raise DataError(
            f"In the baseline {metric.name} is known of {users.height} users, too few or all of them alike",
            expected=f"{sequential.MIN_USERS} users of a past period, of whom some did what the metric counts",
            do="Take a longer period, or another metric.",
        )
    return data, columns.usable(data)


def _width(alpha: float) -> float:
    """Of the always-valid interval over the fixed one, both at the planned size."""
    from scipy.special import ndtri

    return float(sequential.half_width(1.0, 1.0, sequential.tuning(1.0, alpha), alpha) / -ndtri(alpha / 2))
