"""The difference of two arms in one metric: tea-tasting's tests on moments, and the always-valid interval beside.

Means by Welch's test, with a covariate by CUPED (Deng et al. 2013), ratios by the delta method (Deng et al. 2018),
ratio CUPED by both; shares without a covariate by the unpooled test of two proportions. Relative intervals are
tea-tasting's, on the logarithm of the ratio of both means. A time to event is compared by its mean within the
window: every mature user was watched to its end, so that mean is the restricted mean survival time, uncensored.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from sonder.experiments import sequential
from sonder.experiments.moments import Columns
from sonder.experiments.results import Estimate, Interval
from sonder.experiments.specification import Kind

if TYPE_CHECKING:
    from tea_tasting.aggr import Aggregates

SHARES = ("conversion", "retention")


def estimate(
    control: Aggregates | None, treatment: Aggregates | None, columns: Columns, kind: Kind, alpha: float
) -> Estimate | None:
    """Means, difference, interval and p-value; None where the users are too few or too alike for any."""
    if control is None or treatment is None or not _is_testable(control, treatment, columns):
        return None
    name, test = _test(columns.usable(control, treatment), kind, alpha)
    result = test.analyze_aggregates(control, treatment)
    has_relative = result.control > 0 and result.treatment > 0
    return Estimate(
        control=float(result.control),
        treatment=float(result.treatment),
        interval=Interval(
            difference=float(result.effect_size),
            lower=float(result.effect_size_ci_lower),
            upper=float(result.effect_size_ci_upper),
            relative=float(result.rel_effect_size) if has_relative else None,
            relative_lower=float(result.rel_effect_size_ci_lower) if has_relative else None,
            relative_upper=float(result.rel_effect_size_ci_upper) if has_relative else None,
            p_value=float(result.pvalue),
            confidence=1 - alpha,
        ),
        test=name,
    )


def always_valid(
    control: Aggregates | None, treatment: Aggregates | None, columns: Columns, rho2: float, alpha: float
) -> Interval | None:
    """The same difference, with bounds that hold at every look; None for fewer users than asymptotics need."""
    if control is None or treatment is None or min(control.count(), treatment.count()) < sequential.MIN_USERS:
        return None
    point = estimate(control, treatment, columns, "value", alpha)
    if point is None or point.interval.difference is None:
        return None
    errors = standard_errors(control, treatment, columns)
    num_users = control.count() + treatment.count()
    half = float(sequential.half_width(errors[0], num_users, rho2, alpha))
    difference, relative = point.interval.difference, point.interval.relative
    log_half = None if errors[1] is None else float(sequential.half_width(errors[1], num_users, rho2, alpha))
    ratios = None if relative is None or log_half is None else _around(1 + relative, log_half)
    return Interval(
        difference=difference,
        lower=difference - half,
        upper=difference + half,
        relative=relative,
        relative_lower=ratios and ratios[0],
        relative_upper=ratios and ratios[1],
        p_value=sequential.p_value(difference, errors[0], num_users, rho2),
        confidence=1 - alpha,
    )


def standard_errors(control: Aggregates, treatment: Aggregates, columns: Columns) -> tuple[float, float | None]:
    """Of the difference, and of the logarithm of the ratio of both means, as tea-tasting has them."""
    import tea_tasting
    from scipy.special import ndtri

    columns = columns.usable(control, treatment)
    test = tea_tasting.RatioOfMeans(columns.value, columns.per, columns.pre, columns.pre_per, use_t=False)
    result = test.analyze_aggregates(control, treatment)
    z = float(ndtri((1 + test.confidence_level) / 2))
    error = float(result.effect_size_ci_upper - result.effect_size_ci_lower) / (2 * z)
    if result.control <= 0 or result.treatment <= 0:
        return error, None
    ratio_upper, ratio = 1 + float(result.rel_effect_size_ci_upper), 1 + float(result.rel_effect_size)
    return error, math.log(ratio_upper / ratio) / z if math.isfinite(ratio_upper) else None


def variance_reduction(control: Aggregates | None, treatment: Aggregates | None, columns: Columns) -> float | None:
    """By which share CUPED made the difference's variance smaller; None without a covariate."""
    if control is None or treatment is None or columns.usable(control, treatment).pre is None:
        return None
    if not _is_testable(control, treatment, columns):
        return None
    plain = standard_errors(control, treatment, columns.unadjusted)[0]
    return 1 - (standard_errors(control, treatment, columns)[0] / plain) ** 2


def _test(columns: Columns, kind: Kind, alpha: float) -> tuple[str, Any]:
    import tea_tasting

    if kind in SHARES and columns.pre is None:
        test = tea_tasting.Proportion(
            columns.value, method="norm", correction=False, equal_var=False, confidence_level=1 - alpha
        )
        return "two proportions, unpooled (tea-tasting Proportion)", test
    name = {
        (False, False): "Welch's t (tea-tasting Mean)",
        (False, True): "Welch's t after CUPED (tea-tasting Mean with a covariate)",
        (True, False): "delta method (tea-tasting RatioOfMeans)",
        (True, True): "delta method after CUPED (tea-tasting RatioOfMeans with covariates)",
    }[columns.per is not None, columns.pre is not None]
    if kind == "time_to_event":
        name = f"restricted mean, {name}"
    return name, tea_tasting.RatioOfMeans(
        columns.value, columns.per, columns.pre, columns.pre_per, confidence_level=1 - alpha
    )


def _around(ratio: float, log_half: float) -> tuple[float, float] | None:
    """Relative bounds about a ratio of means; None where they say nothing."""
    return (ratio * math.exp(-log_half) - 1, ratio * math.exp(log_half) - 1) if log_half < 100 else None


def _is_testable(control: Aggregates, treatment: Aggregates, columns: Columns) -> bool:
    """Two users of each arm, a denominator that is not 0, and not everybody the same."""
    if min(control.count(), treatment.count()) < 2:
        return False
    if columns.per is not None and min(control.mean(columns.per), treatment.mean(columns.per)) <= 0:
        return False
    return any(arm.ratio_var(columns.value, columns.per) > 0 for arm in (control, treatment))
