"""Whether arms have as many exposed users as their weights say: an experiment that fails this proves nothing.

Source: Fabijan et al., "Diagnosing sample ratio mismatch in online controlled experiments", KDD 2019: chi-square, p
below .001 (few false alarms, as every look tests again). The days locate a break (a deployment, a ramp, a lost log),
and one lost day is a break though all days together hide it: two tests at .001, over all and over the worst day (Holm).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import polars as pl

from sonder.experiments.multiplicity import holm
from sonder.experiments.results import SampleRatioCheck, SampleRatioDay
from sonder.experiments.specification import Experiment

BROKEN_BELOW = 0.001
MIN_EXPECTED = 5
MAX_IN_SEVERAL = 0.01  # of exposed users: assignment is by key, so more than a few merged ids mean that it is broken


def check_sample_ratio(
    experiment: Experiment, users: pl.DataFrame, exposures_by_arm: Mapping[str, int], num_in_several: int
) -> SampleRatioCheck:
    counts = {arm.name: int(exposures_by_arm.get(arm.name, 0)) for arm in experiment.arms}
    weights = [arm.weight for arm in experiment.arms]
    total = sum(counts.values())
    expected = {name: total * weight / sum(weights) for name, weight in zip(counts, weights, strict=True)}
    p_value = ratio_p_value(list(counts.values()), weights)
    share = num_in_several / max(1, total + num_in_several)
    by_day = _by_day(list(counts), weights, users)
    p_values = [p_value, *(day.p_adjusted for day in by_day)]
    return SampleRatioCheck(
        counts=counts,
        expected=expected,
        p_value=p_value,
        is_broken=any(p is not None and p < BROKEN_BELOW for p in p_values),
        by_day=by_day,
        num_in_several=num_in_several,
        share_in_several=share,
        too_many_in_several=share > MAX_IN_SEVERAL,
    )


def ratio_p_value(counts: Sequence[int], weights: Sequence[float]) -> float | None:
    """Chi-square of the counts against the weights; None where an arm should have fewer than five users."""
    from scipy.stats import chisquare

    expected = [sum(counts) * weight / sum(weights) for weight in weights]
    return float(chisquare(counts, expected).pvalue) if min(expected) >= MIN_EXPECTED else None


def _by_day(arms: list[str], weights: list[float], users: pl.DataFrame) -> tuple[SampleRatioDay, ...]:
    table = (
        users.with_columns(pl.col("exposed_at").dt.date().alias("day"))
        .group_by("day")
        .agg((pl.col("arm") == arm).sum().alias(arm) for arm in arms)
        .sort("day")
    )
    days = {row["day"]: [int(row[arm]) for arm in arms] for row in table.iter_rows(named=True)}  # a row a day
    p_values = {day: ratio_p_value(counts, weights) for day, counts in days.items()}
    adjusted = holm(p_values)
    return tuple(
        SampleRatioDay(
            day=day,
            counts=dict(zip(arms, counts, strict=True)),
            p_value=p_values[day],
            p_adjusted=adjusted.get(day),
        )
        for day, counts in days.items()
    )
