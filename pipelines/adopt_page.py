"""The page of `sonder adopt`: the word and its reasons first, then all of the evidence, self-contained."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import yaml

from pipelines.adopt import Adoption
from pipelines.adopt_cost import CostComparison
from pipelines.adopt_findings import COST_NAMES
from pipelines.adopt_off_policy import OffPolicyComparison
from pipelines.adopt_ranking import RankingComparison
from sonder.evaluation.diff_page import psi_word
from sonder.evaluation.effect_charts import IntervalRow, interval_chart, signed
from sonder.evaluation.page import page_environment, styles
from sonder.evaluation.paired import PairedDifference
from sonder.evaluation.user_comparison import UserComparison
from sonder.experiments.planning import MetricPlan, Plan
from sonder.experiments.power import Size
from sonder.experiments.specification import Experiment

WORDS = {
    "no": "No",
    "experiment": "Ask the users: experiment",
    "ship": "Ship it",
}
TONES = {"no": "stop", "experiment": "wait", "ship": ""}


def render_adoption(adoption: Adoption) -> str:
    """The page as one string; the same evidence gives the same bytes."""
    is_planned = adoption.plan is not None and adoption.experiment is not None
    return page_environment().get_template("adopt.html").render(
        a=adoption,
        css=styles("report.css", "diff.css", "experiment.css"),
        word=WORDS[adoption.decision.word],
        tone=TONES[adoption.decision.word],
        probes=None if adoption.probes is None else _probes(adoption.probes, adoption.current, adoption.candidate),
        ranking=None if adoption.ranking is None else _ranking(adoption.ranking),
        off_policy=None if adoption.off_policy is None else _off_policy(adoption.off_policy),
        cost_lead=f"Training from the manifests; {adoption.costs.protocol}.",
        costs=list(_costs(adoption.costs)),
        stability_lead=_stability_lead(adoption),
        stability=list(_stability(adoption.differences.users)),
        plan=_plan(adoption.experiment, adoption.plan) if is_planned else None,  # type: ignore[arg-type]
    )  # fmt: skip


def experiment_yaml(experiment: Experiment) -> str:
    """What `sonder experiment start` reads; what is left at its default is left out."""
    content = experiment.model_dump(mode="json", exclude_defaults=True)
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True)


def _probes(probes: dict[str, Any], current: str, candidate: str) -> dict[str, Any]:
    compared, sides = probes["differences"], probes["releases"]
    rows, marks = [], []
    for question, readers in compared["questions"].items():
        for reader, features in readers.items():
            metric, found = next(iter(features["vector"].items()))
            low, high = found["interval"] or (float("nan"), float("nan"))
            was, now = (_probe_value(sides[side], question, reader, metric) for side in (current, candidate))
            rows.append(
                {"question": question, "reader": reader, "metric": metric, "was": was, "now": now,
                 "difference": f"{found['value']:+.4f}", "interval": f"{low:+.4f} to {high:+.4f}"}
            )  # fmt: skip
            name = f"{question}, {reader}"
            told = f"{name}: {found['value']:+.4f} {metric}, {low:+.4f} to {high:+.4f}"
            marks.append(IntervalRow(name, found["value"], low, high, told))
    lead = (
        f"One frozen vector per user as of {probes['cutoff']}, read by the same small models; labels from the "
        f"{probes['within_days']} days after it, measured on held-out users. 95 % intervals resample these users. "
        "Differences in the metric's own unit, times 100."
    )
    return {"lead": lead, "rows": rows, "chart": interval_chart(marks, "Differences of the probes") if marks else ""}


def _probe_value(side: dict[str, Any], question: str, reader: str, metric: str) -> str:
    return f"{side['questions'][question]['readers'][reader]['vector'][metric]['value']:.4f}"


def _ranking(ranking: RankingComparison) -> dict[str, Any]:
    facts = [
        {"figure": f"{ranking.overlap_at_10:.1%}", "sentence": "of a list of ten is in the other one too, on average."}
    ]
    for name, found in (("NDCG@10", ranking.ndcg_at_10), ("HR@10", ranking.hr_at_10)):
        if found is not None:
            facts.append({"figure": f"{found.difference:+.4f}", "sentence": _ranked(name, found)})
    rows = [row for row in map(_slice, ranking.by_lifecycle) if row is not None]
    lead = f"Protocol {ranking.protocol}; cutoff {ranking.cutoff}, until {ranking.until}, {ranking.users:,} users."
    return {"lead": lead, "facts": facts, "chart": interval_chart(rows, "NDCG@10 by lifecycle") if rows else ""}


def _ranked(name: str, found: PairedDifference) -> str:
    bounds = f"95 % interval {found.low:+.4f} to {found.high:+.4f}"
    return f"is the change of {name}, from {found.was:.4f} to {found.now:.4f}; {bounds}, paired by user."


def _slice(found: PairedDifference) -> IntervalRow | None:
    if not found.was:
        return None
    estimate, low, high = (value / found.was for value in (found.difference, found.low, found.high))
    told = f"{found.name}: {found.was:.4f} to {found.now:.4f}, {found.users:,} users"
    return IntervalRow(f"{found.name} ({found.users:,})", estimate, low, high, told)


def _off_policy(found: OffPolicyComparison) -> dict[str, Any]:
    lead = (
        f"{found.rounds:,} shown items of {found.users:,} users, {found.actions:,} items to choose from; the logging "
        f"policy earned {found.logged:.5f} a shown item. Each release as if it had ordered these items for these users."
    )
    rows = [
        {
            "name": name,
            "was": f"{found.was[name].value:.5f}",
            "was_interval": _bounds(found.was[name].interval),
            "now": f"{found.now[name].value:.5f}",
            "now_interval": _bounds(found.now[name].interval),
        }
        for name in found.was
    ]
    rows.append({"name": "difference, dr", "was": "", "was_interval": "", "now": f"{found.difference:+.5f}",
                 "now_interval": f"{found.low:+.5f} to {found.high:+.5f}"})  # fmt: skip
    return {"lead": lead, "rows": rows, "warnings": found.warnings}


def _bounds(interval: Sequence[float]) -> str:
    return f"{interval[0]:.5f} to {interval[1]:.5f}"


def _costs(costs: CostComparison) -> Iterator[dict[str, str]]:
    digits = {"training_seconds": 0, "vector_bytes": 0, "profile_bytes": 0, "embedding_ms": 2}
    for name, places in digits.items():
        was, now, ratio = getattr(costs.was, name), getattr(costs.now, name), costs.ratio(name)
        told = [f"{value:,.{places}f}" if value is not None else "not recorded" for value in (was, now)]
        yield {
            "name": COST_NAMES[name],
            "was": told[0],
            "now": told[1],
            "ratio": "·" if ratio is None else f"{ratio:.2f}",
        }


def _stability_lead(adoption: Adoption) -> str:
    verdict = adoption.differences.verdict
    if verdict is None:
        return "Nobody has said what it relies on: consumers.yaml is where they do (docs/releases.md)."
    kept = len(verdict.findings) - len(verdict.refusals)
    return f"{kept} of {len(verdict.findings)} promises to consumers are kept."


def _stability(users: UserComparison) -> Iterator[dict[str, str]]:
    yield {
        "what": "users of both",
        "told": f"{users.users:,}; {users.only_before:,} only before, {users.only_after:,} only now",
    }
    yield {"what": "lifecycle state", "told": f"{users.lifecycle.stayed:.1%} of users stay in theirs"}
    yield {"what": "behaviour cluster", "told": f"{users.clusters.stayed:.1%} stay in the cluster of the same id"}
    vectors = users.vectors
    if vectors.movement is not None:
        yield {"what": "vector", "told": f"median cosine {vectors.movement.median:.3f} between a user's two vectors"}
    else:
        yield {
            "what": "vector",
            "told": vectors.reason or "another space: the two vectors of a user cannot be compared",
        }
    for shift in users.scores:
        means = f"mean {shift.mean_before:.4f} before, {shift.mean_after:.4f} now"
        yield {"what": shift.name, "told": f"PSI {shift.psi:.3f} ({psi_word(shift.psi)}); {means}"}


def _plan(experiment: Experiment, plan: Plan) -> dict[str, Any]:
    per_arm = max(plan.users_by_arm.values())
    lead = (
        f"{per_arm:,} users in each arm find a change of {experiment.minimum_effect:.1%} in {experiment.primary} with "
        f"power {plan.power:.0%} at level {experiment.alpha:.0%}, decided by {plan.decided_by}."
    )
    if plan.users_per_day is not None:
        lead += f" {plan.users_per_day:,.0f} new users a day"
        lead += f" make that {plan.days:,.0f} days." if plan.days is not None else " are too few ever to reach it."
        if plan.is_feasible is False:
            lead += f" More than the {experiment.max_days:g} that it may take: ask for a larger effect, or for longer."
    columns = ["mean", "deviation", "CUPED takes", "to find", "users per arm", "detectable"]
    return {
        "lead": lead,
        "columns": columns,
        "rows": [
            {"name": one.metric, "cells": list(zip(columns, _metric_cells(one), strict=True))} for one in plan.metrics
        ],
        "yaml": experiment_yaml(experiment),
    }  # fmt: skip


def _metric_cells(one: MetricPlan) -> list[str]:
    return [
        f"{one.mean:.4g}",
        f"{one.deviation:.4g}",
        f"{one.variance_reduction:.0%}",
        "·" if one.effect is None else f"{one.effect:.1%}",
        _per_arm(one.needed),
        "·" if one.detectable is None else signed(one.detectable).lstrip("+"),
    ]


def _per_arm(size: Size | None) -> str:
    return "·" if size is None else f"{max(size.by_arm.values()):,}"
