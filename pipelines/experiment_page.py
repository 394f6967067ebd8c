"""The page of one analysis: verdict first, then whether it can be believed, what changed, when, and for whom.

One self-contained HTML file in the style of the report: no script, nothing from the network. Everything shown is in the
analysis; the same analysis gives the same bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pipelines.experiment_preference import PreferenceFound
from sonder.evaluation.effect_charts import IntervalRow, TimePoint, effect_over_time_chart, interval_chart, signed
from sonder.evaluation.page import page_environment, styles
from sonder.experiments.interleaving_analysis import Preference
from sonder.experiments.results import Analysis, ByDay, Cut, Effect, GuardrailResult, Interval
from sonder.experiments.specification import Experiment

WORDS = {
    "blocked": "Blocked",
    "ship": "Ship it",
    "no": "No",
    "continue": "Go on",
    "no_effect": "No effect that matters",
}
TONES = {"blocked": "stop", "no": "stop", "continue": "wait", "no_effect": "wait", "ship": ""}


def render_analysis(experiment: Experiment, analysis: Analysis, counts: dict[str, Any]) -> str:
    """The page as one string. `counts` is what the measuring said of its rows, shown with the protocol."""
    srm, names = analysis.srm, [arm.name for arm in experiment.arms]
    return page_environment().get_template("experiment.html").render(
        a=analysis,
        e=experiment,
        css=styles("report.css", "diff.css", "experiment.css"),
        word=word_of(analysis),
        tone=TONES[analysis.verdict.decision],
        facts=_facts(experiment, analysis),
        split_sentence=split_sentence(analysis),
        split=[
            {
                "arm": name,
                "users": srm.counts.get(name, 0),
                "expected": round(srm.expected.get(name, 0.0)),
                "share": srm.counts.get(name, 0) / max(1, sum(srm.counts.values())),
            }
            for name in names
        ],
        arms=names,
        days=[
            {"day": f"{day.day}", "users": [day.counts.get(name, 0) for name in names], "p": told_p(day.p_adjusted)}
            for day in srm.by_day
        ],
        limit=f"{experiment.minimum_effect:.1%}",
        effects=[_arm(experiment, analysis, name) for name in names[1:]],
        guardrails=[_guardrail(found) for found in analysis.guardrails],
        times=[_time(experiment, found) for found in analysis.by_day],
        cuts=[_cut(experiment, cut) for cut in analysis.cuts],
        protocol=protocol_lines(experiment, analysis, counts),
    )  # fmt: skip


def render_preference(experiment: Experiment, found: PreferenceFound) -> str:
    """The page of an interleaved experiment."""
    one, (a, b) = found.preference, (arm.name for arm in experiment.arms)
    low, high = one.share_interval
    share = IntervalRow(
        f"users who prefer {b}", one.share_b - 0.5, low - 0.5, high - 0.5, f"{one.share_b:.1%}, {low:.1%} to {high:.1%}"
    )
    is_known = one.num_prefer_a + one.num_prefer_b > 0
    return page_environment().get_template("preference.html").render(
        e=experiment,
        p=one,
        css=styles("report.css", "diff.css", "experiment.css"),
        a=a,
        b=b,
        word=preference_word(experiment, one),
        sentence=preference_sentence(experiment, one),
        chart=interval_chart([share], "Users by preference, less one half") if is_known else "",
        counts=found.counts,
        until=f"{found.until:%Y-%m-%d %H:%M} UTC",
    )  # fmt: skip


def preference_word(experiment: Experiment, one: Preference) -> str:
    """Whom users prefer, as far as the sign test can say."""
    if one.share_p_value >= experiment.alpha:
        return "No preference shown"
    return f"Users prefer {experiment.arms[int(one.share_b > 0.5)].name}"


def preference_sentence(experiment: Experiment, one: Preference) -> str:
    """The numbers behind the word."""
    a, b = (arm.name for arm in experiment.arms)
    low, high = one.share_interval
    told = f"{one.num_prefer_b:,} users chose more of {b}'s items, {one.num_prefer_a:,} more of {a}'s, "
    told += f"{one.num_ties:,} as many."
    if one.num_prefer_a + one.num_prefer_b:
        told += f" {b}'s share of those with a preference is {one.share_b:.1%} (95 % interval {low:.1%} to {high:.1%}, "
        told += f"sign test p = {told_p(one.share_p_value)}). Found 8 times of 10 would be {one.detectable_share:.1%}."
    return told


def word_of(analysis: Analysis) -> str:
    """The verdict in words, with the arm that it is of."""
    arm = f": {analysis.verdict.arm}" if analysis.verdict.arm else ""
    return f"{WORDS[analysis.verdict.decision]}{arm}"


def split_sentence(analysis: Analysis) -> str:
    """Whether the users divide as the weights say."""
    srm = analysis.srm
    told = f"Chi-square of the users of each arm against the weights: p = {told_p(srm.p_value)}. "
    told += "The split is broken, so nothing below can be believed." if srm.is_broken else "Nothing speaks against it."
    if srm.num_in_several:
        told += (
            f" {srm.num_in_several:,} users were seen in several arms and are left out ({srm.share_in_several:.2%})."
        )
    return told


def protocol_lines(experiment: Experiment, analysis: Analysis, counts: dict[str, Any]) -> list[str]:
    """What was counted, from when to when, and by which test."""
    planned = analysis.planned
    size = "Planned size: not known, nobody has a number yet."
    if planned is not None:
        sizes = ", ".join(f"{arm} {users:,}" for arm, users in planned.users_by_arm.items())
        size = (
            f"Planned size: {sizes} users ({planned.source}), level {planned.alpha_of_each_arm:g} for each arm, power "
            f"{experiment.power:.0%} for a change of {experiment.minimum_effect:.1%}."
        )
    lines = [
        f"Events until {analysis.until:%Y-%m-%d %H:%M} UTC; a user counts from the first exposure, once the metric's "
        "window is over.",
        size,
    ]
    lines += sorted({f"{effect.metric}: {effect.adjustment}" for effect in analysis.effects if effect.adjustment})
    lines += sorted({f"{one.metric}: {one.estimate.test}" for one in analysis.effects if one.estimate})
    lines += [f"{name}: {value}" for name, value in counts.items()]
    return lines


def told_p(p_value: float | None) -> str:
    return "not known" if p_value is None else "< 0.0001" if p_value < 1e-4 else f"{p_value:.4f}"


def told_relative(interval: Interval | None) -> str:
    """From the lower to the upper relative bound."""
    if interval is None or interval.relative_lower is None or interval.relative_upper is None:
        return "·"
    return f"{signed(interval.relative_lower)} to {signed(interval.relative_upper)}"


def told_change(effect: Effect) -> str:
    interval = None if effect.estimate is None else effect.estimate.interval
    return "·" if interval is None or interval.relative is None else signed(interval.relative)


def _facts(experiment: Experiment, analysis: Analysis) -> list[dict[str, str]]:
    facts = []
    for arm in experiment.arms[1:]:
        effect = analysis.effect(experiment.primary, arm.name)
        interval = effect.always_valid
        told = f"is the change of {effect.metric} in {arm.name}; whenever one looks, {told_relative(interval)}."
        facts.append({"figure": told_change(effect), "sentence": told})
    users = sum(analysis.srm.counts.values())
    largest = 0 if analysis.planned is None else max(analysis.planned.users_by_arm.values())
    first = analysis.effect(experiment.primary, experiment.arms[1].name)
    known = f"users were exposed; {first.num_control + first.num_treatment:,} have a number already"
    ending = f", {largest:,} in each arm are planned." if largest else "."
    facts.append({"figure": f"{users:,}", "sentence": f"{known}{ending}"})
    held = sum(found.state == "holds" for found in analysis.guardrails)
    if analysis.guardrails:
        facts.append({"figure": f"{held} of {len(analysis.guardrails)}", "sentence": "guardrails hold."})
    return facts


def _arm(experiment: Experiment, analysis: Analysis, arm: str) -> dict[str, Any]:
    effects = [effect for effect in analysis.effects if effect.arm == arm]
    return {
        "name": arm,
        "chart": _effects_chart(experiment, effects, arm),
        "rows": [
            {
                "metric": effect.metric,
                "role": effect.role,
                "control": _mean(effect, "control"),
                "treatment": _mean(effect, "treatment"),
                "change": told_change(effect),
                "interval": told_relative(effect.estimate.interval if effect.estimate else None),
                "always_valid": told_relative(effect.always_valid),
                "p": told_p(effect.p_adjusted),
                "how": _how(effect),
            }
            for effect in effects
        ],
    }


def _effects_chart(experiment: Experiment, effects: Sequence[Effect], arm: str) -> Any:
    rows = [
        _row(effect.metric, effect.estimate.interval, effect.wanted == "increase")
        for effect in effects
        if effect.estimate is not None
    ]
    found = [row for row in rows if row is not None]
    return interval_chart(found, f"Changes in {arm}", limit=experiment.minimum_effect) if found else ""


def _row(name: str, interval: Interval, is_up_better: bool) -> IntervalRow | None:
    if interval.relative is None or interval.relative_lower is None or interval.relative_upper is None:
        return None
    told = f"{name}: {signed(interval.relative)}, {told_relative(interval)} ({interval.confidence:.1%} interval)"
    return IntervalRow(name, interval.relative, interval.relative_lower, interval.relative_upper, told, is_up_better)


def _mean(effect: Effect, side: str) -> str:
    value = None if effect.estimate is None else getattr(effect.estimate, side)
    return "·" if value is None else f"{value:.4g}"


def _how(effect: Effect) -> str:
    parts = [f"{effect.num_control + effect.num_treatment:,} users"]
    if effect.num_immature_control + effect.num_immature_treatment:
        parts.append(f"{effect.num_immature_control + effect.num_immature_treatment:,} too young")
    if effect.variance_reduction:
        parts.append(f"CUPED takes {effect.variance_reduction:.0%} of the variance")
    if effect.capping is not None and effect.capping.value is not None:
        capping = effect.capping
        parts.append(f"{capping.num_capped:,} users capped at {capping.value:.4g} ({capping.quantile:.1%} quantile)")
    if effect.survival is not None and effect.survival.hazard_ratio is not None:
        parts.append(f"hazard ratio {effect.survival.hazard_ratio:.3f}")
    return "; ".join([*parts, *([effect.note] if effect.note else [])])


def _guardrail(found: GuardrailResult) -> dict[str, str]:
    css = {"holds": "kept", "broken": "refused"}.get(found.state, "")
    bounds = [found.relative_lower, found.relative_upper]
    interval = "·" if None in bounds else " to ".join(signed(bound) for bound in bounds if bound is not None)
    margin = f"{found.margin:.1%}"
    return {"metric": found.metric, "arm": found.arm, "interval": interval, "margin": margin, "state": found.state,
            "css": css, "basis": found.basis}  # fmt: skip


def _time(experiment: Experiment, found: ByDay) -> dict[str, Any]:
    points = [
        TimePoint(f"{day.day:%m-%d}", valid.relative, valid.relative_lower, valid.relative_upper)
        for day in found.cumulative
        if (valid := day.always_valid) is not None
        and valid.relative is not None
        and valid.relative_lower is not None
        and valid.relative_upper is not None
    ]
    is_up_better = experiment.metric(experiment.primary).wanted == "increase"
    rows = [
        _row(
            f"{day.first:%m-%d}" + ("" if day.first == day.last else f" to {day.last:%m-%d}"),
            day.interval,
            is_up_better,
        )
        for day in found.cohorts
    ]
    cohorts = [row for row in rows if row is not None]
    novelty = f"Trend over the days of first exposure: p = {told_p(found.p_trend)}; first half against second: p = "
    return {
        "name": found.arm,
        "cumulative": effect_over_time_chart(points, f"{experiment.primary} over time", limit=experiment.minimum_effect)
        if points
        else "",
        "why_not": "No day has enough users whose window is over.",
        "cohorts": interval_chart(cohorts, "Effect by day of first exposure") if len(cohorts) > 1 else "",
        "novelty": f"{novelty}{told_p(found.p_early_late)}. A fading effect is novelty.",
    }


def _cut(experiment: Experiment, cut: Cut) -> dict[str, Any]:
    is_up_better = experiment.metric(experiment.primary).wanted == "increase"
    rows = [_row(part.value, part.interval, is_up_better) for part in cut.effects if part.interval is not None]
    found = [row for row in rows if row is not None]
    refused = [f"{part.value}: {part.refused}" for part in cut.effects if part.refused]
    return {
        "by": cut.by,
        "arm": cut.arm,
        "sentence": f"That the effect is the same in all of them: p = {told_p(cut.p_differ_adjusted)}.",
        "chart": interval_chart(found, f"Effect by {cut.by}") if found else "",
        "refused": "; ".join(refused),
    }
