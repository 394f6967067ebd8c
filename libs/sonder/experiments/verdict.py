"""What to do, and why: one rule, whose chance to be wrong is known before the data are.

For each treatment arm:
    before the planned sample   only the always-valid intervals may decide, whoever looks and however often
    at the planned sample       one fixed test of the first planned users in order of exposure, at the level that
                                looking has left (`sequential.last_level`); users who come later do not change it
Both together call a primary metric better or worse that is not with probability alpha at most.
    ship       better, and every guardrail is shown to hold
    no         worse, or a guardrail is shown to be broken
    continue   undecided, and planned users or time are still to come
    no_effect  undecided, and they are not
Nothing is decided where assignment is broken.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sonder.experiments.results import (
    ArmVerdict,
    Decision,
    Effect,
    Estimate,
    GuardrailResult,
    Interval,
    SampleRatioCheck,
    Verdict,
)
from sonder.experiments.sample_ratio import BROKEN_BELOW, MAX_IN_SEVERAL


@dataclass(frozen=True)
class Evidence:
    """What is known of one arm."""

    primary: Effect
    final: Estimate | None  # of the planned users; None before they are there
    num_planned: int  # of control and this arm together; 0 if it could not be told
    guardrails: tuple[GuardrailResult, ...]
    has_time_left: bool
    minimum_effect: float

    @property
    def interval(self) -> Interval | None:
        return self.primary.always_valid if self.final is None else self.final.interval


def decide(check: SampleRatioCheck, arms: Sequence[Evidence]) -> Verdict:
    """Of all arms: the better one of those that may be shipped, else what is left to do."""
    if reasons := _broken(check):
        return Verdict(decision="blocked", arm=None, reasons=reasons)
    verdicts = tuple(
        ArmVerdict(arm=one.primary.arm, decision=(made := _decide(one))[0], reasons=made[1]) for one in arms
    )
    ready = [one for one, verdict in zip(arms, verdicts, strict=True) if verdict.decision == "ship"]
    best = max(ready, key=_gain, default=None)
    left = [verdict.decision for verdict in verdicts]
    decision: Decision = (
        "ship" if best else "continue" if "continue" in left else "no_effect" if "no_effect" in left else "no"
    )
    told = [verdict for verdict in verdicts if best is None or verdict.arm == best.primary.arm]
    return Verdict(
        decision=decision,
        arm=best.primary.arm if best else None,
        reasons=tuple(reason for verdict in told for reason in verdict.reasons),
        by_arm=verdicts,
    )


def _broken(check: SampleRatioCheck) -> tuple[str, ...]:
    reasons = []
    if check.is_broken:
        sizes = ", ".join(f"{arm} {count:,} of {check.expected[arm]:,.0f}" for arm, count in check.counts.items())
        reasons.append(
            f"The arms' sizes do not fit their weights (exposed of expected: {sizes}; p = {check.p_value or 1:.1e}): "
            "somebody is missing from an arm for a reason, so no difference can be believed."
        )
        days = [day for day in check.by_day if day.p_adjusted is not None and day.p_adjusted < BROKEN_BELOW]
        if days:
            sizes = ", ".join(f"{arm} {count:,}" for arm, count in days[0].counts.items())
            reasons.append(f"It shows on {len(days)} of {len(check.by_day)} days, first on {days[0].day} ({sizes}).")
    if check.too_many_in_several:
        reasons.append(
            f"{check.num_in_several:,} users ({check.share_in_several:.1%}) were seen in several arms, more than "
            f"{MAX_IN_SEVERAL:.0%}: assignment or user ids are broken."
        )
    return tuple(reasons)


def _decide(known: Evidence) -> tuple[Decision, tuple[str, ...]]:
    better = _is_better(known)
    broken = [one for one in known.guardrails if one.state == "broken"]
    waiting = [one for one in known.guardrails if one.state == "undecided"]
    reasons = [_told_primary(known, better), *(_told_guardrail(one) for one in known.guardrails)]
    if better is False or broken:
        return "no", tuple(reasons)
    if better and not waiting:
        return "ship", tuple(reasons)
    is_final = known.final is not None and all(one.basis == "planned sample" for one in waiting)
    if known.has_time_left and not is_final:
        reasons.append(_told_progress(known))
        return "continue", tuple(reasons)
    if better:
        names = ", ".join(one.metric for one in waiting)
        reasons.append(f"It is better, but {names} is not shown to hold, and there is nothing more to wait for.")
    elif known.final is None:
        reasons.append(f"{_told_progress(known)} Time is over.")
    return "no_effect", tuple(reasons)


def _is_better(known: Evidence) -> bool | None:
    """True, False if worse, None if it cannot be told."""
    interval = known.interval
    if interval is None or not interval.excludes_zero:
        return None
    assert interval.difference is not None
    return (interval.difference > 0) == (known.primary.wanted == "increase")


def _gain(known: Evidence) -> float:
    assert known.interval is not None, "it is better"
    difference = known.interval.difference or 0.0
    return difference if known.primary.wanted == "increase" else -difference


def _told_primary(known: Evidence, better: bool | None) -> str:
    metric, arm, interval = known.primary.metric, known.primary.arm, known.interval
    basis = "the always-valid interval" if known.final is None else "the planned sample's interval"
    if interval is None:
        users = f"{known.primary.num_control:,} and {known.primary.num_treatment:,} users"
        return f"{metric} in {arm}: no interval yet, the windows of {users} are over."
    what = {True: "is better", False: "is worse", None: "is undecided"}[better]
    told = f"{metric} in {arm} {what}: {_told(interval)}, {basis}"
    if (
        better is None
        and (lower := interval.relative_lower) is not None
        and (upper := interval.relative_upper) is not None
    ):
        if max(-lower, upper) < known.minimum_effect:
            return f"{told}; all of it is within ±{known.minimum_effect:.1%}, the smallest change that would matter."
        if known.final is not None:
            return f"{told}; a change of {known.minimum_effect:.1%} that would matter is not ruled out."
    return f"{told}."


def _told_guardrail(result: GuardrailResult) -> str:
    what = {"holds": "holds", "broken": "is broken", "undecided": "is undecided"}[result.state]
    if result.relative_lower is None or result.relative_upper is None:
        return f"The guardrail {result.metric} {what}: it has no relative interval yet."
    return (
        f"The guardrail {result.metric} {what}: {_told_bounds(result.relative_lower, result.relative_upper)} at "
        f"{result.confidence:.1%}, with a margin of {result.margin:.1%} ({result.basis})."
    )


def _told_progress(known: Evidence) -> str:
    num_users = known.primary.num_control + known.primary.num_treatment
    if not known.num_planned:
        return f"The windows of {num_users:,} users are over; how many are needed cannot be told yet."
    return f"The windows of {num_users:,} of {known.num_planned:,} planned users are over."


def _told(interval: Interval) -> str:
    if interval.relative is None or interval.relative_lower is None or interval.relative_upper is None:
        return f"{interval.difference:+.4g} [{interval.lower:+.4g}, {interval.upper:+.4g}] at {interval.confidence:.1%}"
    bounds = _told_bounds(interval.relative_lower, interval.relative_upper)
    return f"{interval.relative:+.1%} {bounds} at {interval.confidence:.1%}"


def _told_bounds(lower: float, upper: float) -> str:
    return f"[{lower:+.1%}, {upper:+.1%}]"
