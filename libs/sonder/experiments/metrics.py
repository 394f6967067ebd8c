"""The user frame: one row an exposed user, with that user's number of every metric, from events around the exposure.

For each metric m of the experiment, beside user_id, arm, exposed_at and the cuts that were given (lifecycle, segment):
m             Float64; null where the window [exposed_at, exposed_at + m.window_days) is not over at `until`
m.per         of a ratio: its denominator (m itself is the numerator)
m.event       of a time to event: Boolean, whether it happened; where not, m is the length of the window in days
m.pre         the same over [exposed_at - pre_days, exposed_at), 0 without events there; of a retention the share of the
              days of that period with such an event; of a ratio there is m.pre.per too; none of a time to event
Point in time: an event at `until` or later changes nothing, one before the exposure only `.pre`. An event exactly at
the exposure is after it. Days are 24 hours from the exposure. A value that is missing or not finite counts as 0.
Shapes: U users, N events. One join by user, one pass over the events near an exposure.
Limits: nothing is capped here; the analysis caps, because a cap is a quantile of all arms' mature users.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from datetime import datetime, timedelta

import polars as pl

from sonder.core.errors import ConfigurationError
from sonder.events.contract import Col
from sonder.experiments.specification import Experiment, MetricSpec
from sonder.history.timelines import MICROSECONDS_PER_DAY

CUTS = ("lifecycle", "segment")
TIME = pl.Datetime("us", "UTC")
_AFTER = "microseconds after exposure"  # with spaces, which no metric's name has
_ROW = "row of the user"
_VALUE = pl.col(Col.VALUE).cast(pl.Float64)


def user_numbers(
    experiment: Experiment, exposed: pl.DataFrame, events: pl.DataFrame, *, until: datetime
) -> pl.DataFrame:
    """The user frame [U], in the order of `exposed`.

    exposed: user_id, arm, exposed_at and perhaps lifecycle, segment; each user once, else ValueError.
    events: user_id, action, timestamp, surface, value, in any order; those of other users are not looked at.
    """
    if exposed[Col.USER_ID].n_unique() != exposed.height:
        raise ValueError("a user is exposed twice, expected first exposures (exposures.first_exposures)")
    pre_us = microseconds(experiment.pre_days)
    parts = [part for metric in experiment.metrics for part in _parts(metric, pre_us)]
    numbered = exposed.with_columns(pl.col("exposed_at").cast(TIME)).with_row_index(_ROW)
    summed = (
        events.lazy()
        .filter(pl.col(Col.TIMESTAMP).cast(TIME) < until)
        .join(numbered.lazy().select(Col.USER_ID, _ROW, "exposed_at"), on=Col.USER_ID, how="inner")
        .with_columns((_us(Col.TIMESTAMP) - _us("exposed_at")).alias(_AFTER))
        .filter(pl.col(_AFTER).is_between(-pre_us, microseconds(experiment.window_days), closed="left"))
        .select(_ROW, *(part.alias(name) for name, part, _ in parts))
        .group_by(_ROW)
        .agg(*(over_events for _, _, over_events in parts))
        .collect()
    )
    joined = numbered.join(summed, on=_ROW, how="left", maintain_order="left")
    columns = [column for metric in experiment.metrics for column in _columns(metric, experiment.pre_days, until)]
    cuts = [name for name in CUTS if name in exposed.columns]
    return joined.select(Col.USER_ID, "arm", "exposed_at", *columns, *cuts)


def num_mature(experiment: Experiment, users: pl.DataFrame) -> dict[str, int]:
    """Users of a user frame whose window is over, by metric."""
    return {metric.name: users.height - users[metric.name].null_count() for metric in experiment.metrics}


def check_names(experiment: Experiment, *, actions: Iterable[str], surfaces: Iterable[str]) -> None:
    """ConfigurationError where a metric names an action or a surface that the log does not have."""
    for what, known, keys in (("action", set(actions), ("action", "per")), ("surface", set(surfaces), ("surface",))):
        for metric in experiment.metrics:
            for named in (getattr(metric, key) for key in keys):
                if named is not None and named not in known:
                    raise ConfigurationError(
                        f"The metric {metric.name!r} of experiment {experiment.name!r} names the {what} {named!r}, "
                        "which is not in the log",
                        expected=f"one of {', '.join(sorted(known))}" if known else f"no {what}: the log has none",
                        do="Correct the metric, or wait until the first such event has arrived.",
                    )


def microseconds(days: float) -> int:
    return round(days * MICROSECONDS_PER_DAY)


def _us(column: str) -> pl.Expr:
    return pl.col(column).cast(TIME).cast(pl.Int64)


def _wanted(metric: MetricSpec, action: str | None) -> pl.Expr:
    """Whether an event is of the metric, whenever it happened."""
    conditions = [pl.lit(True)]
    if action is not None:
        conditions.append(pl.col(Col.ACTION) == action)
    if metric.surface is not None:
        conditions.append(pl.col(Col.SURFACE) == metric.surface)
    return pl.all_horizontal(conditions)


def _parts(metric: MetricSpec, pre_us: int) -> list[tuple[str, pl.Expr, pl.Expr]]:
    """What is kept of each event for a metric, by name, and how it is summed up over the events of a user."""
    start_us = 0 if metric.day is None else microseconds(metric.day)
    after = pl.col(_AFTER)
    inside = after.is_between(start_us, microseconds(metric.window_days), closed="left")
    if metric.kind == "time_to_event":
        first = pl.when(inside & _wanted(metric, metric.action)).then(after)
        return [(metric.name, first, pl.col(metric.name).min())]
    periods = [(metric.name, inside)]
    if pre_us:
        periods.append((f"{metric.name}.pre", after.is_between(-pre_us, 0, closed="left")))
    found: list[tuple[str, pl.Expr, pl.Expr]] = []
    for name, period in periods:
        hit, total = period & _wanted(metric, metric.action), pl.col(name).sum()
        if metric.kind == "value":
            found.append((name, pl.when(hit & _VALUE.is_finite()).then(_VALUE), total))
        elif metric.kind == "retention" and period is not inside:
            days_back = (-1 - after) // MICROSECONDS_PER_DAY
            found.append((name, pl.when(hit).then(days_back.cast(pl.Int16)), pl.col(name).drop_nulls().n_unique()))
        else:
            found.append((name, hit, total))
        if metric.kind == "ratio":
            found.append((f"{name}.per", period & _wanted(metric, metric.per), pl.col(f"{name}.per").sum()))
    return found


def _columns(metric: MetricSpec, pre_days: float, until: datetime) -> list[pl.Expr]:
    """The columns of one metric, from the sums over each user's events (null without any)."""
    window = timedelta(microseconds=microseconds(metric.window_days))
    is_over = pl.col("exposed_at") + window <= until

    def mature(number: pl.Expr, name: str) -> pl.Expr:
        return pl.when(is_over).then(number).alias(name)

    if metric.kind == "time_to_event":
        days = pl.col(metric.name).cast(pl.Float64) / MICROSECONDS_PER_DAY
        return [
            mature(days.fill_null(metric.window_days), metric.name),
            mature(pl.col(metric.name).is_not_null(), f"{metric.name}.event"),
        ]
    names = ["", ".per"] if metric.kind == "ratio" else [""]
    columns = [mature(_number(metric, f"{metric.name}{part}"), f"{metric.name}{part}") for part in names]
    if pre_days:
        before = [f"{metric.name}.pre{part}" for part in names]
        share = 1 / math.ceil(pre_days) if metric.kind == "retention" else None
        columns += [(_number(metric, name) if share is None else _sum(name) * share).alias(name) for name in before]
    return columns


def _number(metric: MetricSpec, name: str) -> pl.Expr:
    """0 or 1 where the metric asks whether, else the sum."""
    asks_whether = metric.kind in ("conversion", "retention")
    return (_sum(name) > 0).cast(pl.Float64) if asks_whether else _sum(name)


def _sum(name: str) -> pl.Expr:
    return pl.col(name).fill_null(0).cast(pl.Float64)
