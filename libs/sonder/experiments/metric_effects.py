"""Every metric in every treatment arm: of all users whose window is over, corrected for how many results there are.

Primary: alpha over the treatment arms (Bonferroni), intervals at that level. Secondary: Benjamini-Hochberg over all
secondary results, intervals each at 1 - alpha. Guardrails are judged elsewhere (guardrails), one by one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import polars as pl

from sonder.experiments import sequential
from sonder.experiments.effects import always_valid, estimate, variance_reduction
from sonder.experiments.moments import Columns, moments
from sonder.experiments.multiplicity import benjamini_hochberg
from sonder.experiments.planning import role_of
from sonder.experiments.results import Capping, Effect, Estimate, PlannedSize, Survival
from sonder.experiments.specification import MetricSpec
from sonder.experiments.survival import survival
from sonder.experiments.user_frame import UserFrame

if TYPE_CHECKING:
    from tea_tasting.aggr import Aggregates


def all_effects(frame: UserFrame, size: PlannedSize | None) -> tuple[Effect, ...]:
    found = [effect for metric in frame.experiment.metrics for effect in _effects_of(frame, metric, size)]
    adjusted = benjamini_hochberg({(one.metric, one.arm): _p(one) for one in found if one.role == "secondary"})
    how = f"Benjamini-Hochberg over {len(adjusted)} secondary results"
    return tuple(
        one
        if one.role != "secondary"
        else Effect(**{**dict(one), "p_adjusted": adjusted.get((one.metric, one.arm)), "adjustment": how})
        for one in found
    )


def _effects_of(frame: UserFrame, metric: MetricSpec, size: PlannedSize | None) -> list[Effect]:
    """Of one metric, a treatment arm each."""
    experiment = frame.experiment
    users, capping = frame.known(metric)
    columns = Columns.of(metric, users)
    groups = moments(users, ["arm"], columns)
    is_primary = metric.name == experiment.primary
    num_treatments = len(experiment.arms) - 1
    alpha = experiment.alpha / num_treatments if is_primary else experiment.alpha
    found = []
    for arm in (one.name for one in experiment.arms[1:]):
        pair = groups.get((experiment.control.name,)), groups.get((arm,))
        counts = [0 if one is None else one.count() for one in pair]
        found.append(
            Effect(
                metric=metric.name,
                kind=metric.kind,
                role=role_of(experiment, metric.name),
                arm=arm,
                wanted=metric.wanted,
                num_control=counts[0],
                num_treatment=counts[1],
                num_immature_control=frame.num_exposed[experiment.control.name] - counts[0],
                num_immature_treatment=frame.num_exposed[arm] - counts[1],
                **_numbers(pair, columns, metric, alpha, num_treatments if is_primary else 1),
                always_valid=always_valid(*pair, columns, sequential.tuning(size.num_users(arm), alpha), alpha)
                if size is not None
                else None,
                capping=capping,
                survival=_survival(users, experiment.control.name, arm, metric, alpha),
                note=_note(metric, capping, counts, pair),
            )
        )
    return found


def _numbers(
    pair: tuple[Aggregates | None, Aggregates | None],
    columns: Columns,
    metric: MetricSpec,
    alpha: float,
    num_compared: int,
) -> dict[str, Any]:
    """The fixed-horizon part of an effect."""
    made = estimate(*pair, columns, metric.kind, alpha)
    reduction = None if made is None else variance_reduction(*pair, columns)
    p_value = None if made is None else made.interval.p_value
    return {
        "estimate": made,
        "unadjusted": None if reduction is None else estimate(*pair, columns.unadjusted, metric.kind, alpha),
        "variance_reduction": reduction,
        "p_adjusted": None if p_value is None else min(1.0, p_value * num_compared),
        "adjustment": f"Bonferroni over {num_compared} treatment arms" if num_compared > 1 else "none",
    }


def _survival(users: pl.DataFrame, control: str, arm: str, metric: MetricSpec, alpha: float) -> Survival | None:
    if metric.kind != "time_to_event":
        return None
    left, right = (users.filter(pl.col("arm") == name) for name in (control, arm))
    return survival(left, right, metric, alpha)


def _note(
    metric: MetricSpec, capping: Capping | None, counts: list[int], pair: tuple[Aggregates | None, Aggregates | None]
) -> str:
    """What a reader must know of the numbers' reach."""
    if min(counts) < sequential.MIN_USERS:
        return f"{min(counts)} users in the smaller arm: intervals for fewer than {sequential.MIN_USERS} mean little."
    if metric.kind in ("conversion", "retention"):
        rare = [min(one.mean(metric.name), 1 - one.mean(metric.name)) * one.count() for one in pair if one is not None]
        if min(rare) < 10:
            return f"{min(rare):.0f} users of an arm differ from the others: the interval is approximate below 10."
    if capping is not None and capping.value is None:
        return f"The quantile {capping.quantile} is 0, so nothing was capped."
    return ""


def _p(effect: Effect) -> float | None:
    return None if effect.estimate is None else effect.estimate.interval.p_value


def final_estimate(planned: UserFrame, metric: MetricSpec, arm: str, alpha: float) -> Estimate | None:
    """Of the planned users; None unless each of them is known in this metric."""
    users, _ = planned.known(metric)
    if users.height < planned.users.height:
        return None
    columns = Columns.of(metric, users)
    groups = moments(users, ["arm"], columns)
    return estimate(groups.get((planned.experiment.control.name,)), groups.get((arm,)), columns, metric.kind, alpha)
