"""Whether a metric that must not get worse did: tests of non-inferiority, at level alpha to each side.

holds       the bad end of the interval is inside the margin
broken      the interval is wholly beyond the margin
undecided   neither
Every guardrail must hold before anything ships, so they need no correction for being several (intersection-union).
"""

from __future__ import annotations

from sonder.experiments.results import GuardrailResult, GuardrailState, Interval
from sonder.experiments.specification import Guardrail, MetricSpec


def judge(
    guardrail: Guardrail, metric: MetricSpec, arm: str, interval: Interval | None, *, alpha: float, is_planned: bool
) -> GuardrailResult:
    """`interval` is two-sided at 1 - 2 alpha: always-valid before the planned sample, fixed at it."""
    lower = None if interval is None else interval.relative_lower
    upper = None if interval is None else interval.relative_upper
    return GuardrailResult(
        metric=guardrail.metric,
        arm=arm,
        margin=guardrail.margin,
        state=_state(lower, upper, guardrail.margin, is_more_worse=metric.wanted == "decrease"),
        relative_lower=lower,
        relative_upper=upper,
        confidence=1 - 2 * alpha if interval is None else interval.confidence,
        basis="planned sample" if is_planned else "always-valid",
    )


def _state(lower: float | None, upper: float | None, margin: float, *, is_more_worse: bool) -> GuardrailState:
    if lower is None or upper is None:
        return "undecided"
    good, bad = (lower, -upper) if is_more_worse else (-upper, lower)
    if bad > -margin:
        return "holds"
    return "broken" if good > margin else "undecided"
