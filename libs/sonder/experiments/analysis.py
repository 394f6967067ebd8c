"""What an experiment has shown so far: sizes, effects, guardrails, cuts, days, and the verdict, from its user frame.

    sample_ratio     do the arms have the users that their weights say        blocks everything else
    metric_effects   each metric, each arm: fixed and always-valid intervals  for whoever reads
    guardrails       shown to hold, or broken
    cuts, novelty    the primary metric by lifecycle, segment and day         for understanding, never for the verdict
    verdict          ship, no, continue, no_effect, blocked, and why
Looking changes nothing: before the planned size only always-valid intervals decide, at it the first planned users.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

import polars as pl

from sonder.core.errors import DataError
from sonder.experiments import sequential
from sonder.experiments.cuts import primary_by_cut
from sonder.experiments.effects import always_valid
from sonder.experiments.guardrails import judge
from sonder.experiments.metric_effects import all_effects, final_estimate
from sonder.experiments.moments import Columns, moments
from sonder.experiments.novelty import Question, by_day
from sonder.experiments.planning import Plan, plan
from sonder.experiments.results import Analysis, ByDay, GuardrailResult, Interval, PlannedSize
from sonder.experiments.sample_ratio import check_sample_ratio
from sonder.experiments.specification import Experiment, Guardrail
from sonder.experiments.user_frame import UserFrame
from sonder.experiments.verdict import Evidence, decide


def analyse(
    experiment: Experiment,
    users: pl.DataFrame,
    *,
    exposures_by_arm: Mapping[str, int],
    num_in_several: int,
    until: datetime,
    planned: Plan | None = None,
) -> Analysis:
    """Everything as of `until`. Without `planned`, the size is estimated from all arms together, blind to their
    difference; better is the plan that was made before. ConfigurationError, DataError: see UserFrame."""
    frame = UserFrame.of(experiment, users)
    size = _planned_size(experiment, users, planned)
    check = check_sample_ratio(experiment, users, exposures_by_arm, num_in_several)
    effects = all_effects(frame, size)
    arms = [arm.name for arm in experiment.arms[1:]]
    primary_of = {one.arm: one for one in effects if one.metric == experiment.primary}
    evidence = []
    for arm in arms:
        first = None if size is None else frame.first_of(_pair(size, arm))
        evidence.append(
            Evidence(
                primary=primary_of[arm],
                final=None
                if size is None or first is None
                else final_estimate(first, frame.primary, arm, size.last_level),
                num_planned=0 if size is None else size.num_users(arm),
                guardrails=tuple(_judged(frame, first, size, one, arm) for one in experiment.guardrails),
                has_time_left=frame.has_time_left(until),
                minimum_effect=experiment.minimum_effect,
            )
        )
    known, _ = frame.known(frame.primary)
    return Analysis(
        experiment=experiment.name,
        until=until,
        planned=size,
        srm=check,
        effects=effects,
        guardrails=tuple(result for one in evidence for result in one.guardrails),
        cuts=primary_by_cut(experiment, known, Columns.of(frame.primary, known)),
        by_day=tuple(_by_day(frame, known, size, arm, until) for arm in arms),
        verdict=decide(check, evidence),
    )


def _planned_size(experiment: Experiment, users: pl.DataFrame, planned: Plan | None) -> PlannedSize | None:
    """None while nothing can be planned: nobody has done yet what the metrics count."""
    try:
        made = planned or plan(experiment, users, users_per_day=None)
    except DataError:
        return None
    alpha, control = made.alpha_of_each_arm, experiment.control.name
    counts = made.users_by_arm
    return PlannedSize(
        source="all arms together" if planned is None else "plan",
        control=control,
        users_by_arm=counts,
        alpha_of_each_arm=alpha,
        last_level=sequential.last_level(alpha),
        rho2_by_arm={
            arm: sequential.tuning(counts[control] + count, alpha) for arm, count in counts.items() if arm != control
        },
    )


def _pair(size: PlannedSize, arm: str) -> dict[str, int]:
    return {name: size.users_by_arm[name] for name in (size.control, arm)}


def _judged(
    frame: UserFrame, first: UserFrame | None, size: PlannedSize | None, guardrail: Guardrail, arm: str
) -> GuardrailResult:
    """By the planned users if each of them is known in this metric, else by the always-valid interval."""
    metric, alpha = frame.experiment.metric(guardrail.metric), frame.experiment.alpha
    final = None if first is None else final_estimate(first, metric, arm, sequential.last_level(2 * alpha))
    interval: Interval | None = None if final is None else final.interval
    if final is None and size is not None:
        users, _ = frame.known(metric)
        columns = Columns.of(metric, users)
        groups = moments(users, ["arm"], columns)
        pair = groups.get((size.control,)), groups.get((arm,))
        interval = always_valid(*pair, columns, sequential.tuning(size.num_users(arm), 2 * alpha), 2 * alpha)
    return judge(guardrail, metric, arm, interval, alpha=alpha, is_planned=final is not None)


def _by_day(frame: UserFrame, known: pl.DataFrame, size: PlannedSize | None, arm: str, until: datetime) -> ByDay:
    alpha = frame.experiment.alpha / (len(frame.experiment.arms) - 1)
    question = Question(
        metric=frame.primary,
        columns=Columns.of(frame.primary, known),
        alpha=alpha,
        rho2=None if size is None else size.rho2_by_arm[arm],
    )
    return by_day(known, frame.experiment.control.name, arm, question, until)
