"""Means, variances and covariances of the user frame, by group: all that the tests of means need of the users.

tea-tasting's own reader gives NaN to a group of one user, and NaN spoils a sum of groups (by day, by segment);
here such a group has variance 0, as its weight in a sum is 0. Otherwise the numbers are the reader's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import combinations
from typing import TYPE_CHECKING, Any

import polars as pl

from sonder.experiments.results import Capping
from sonder.experiments.specification import MetricSpec

if TYPE_CHECKING:
    from tea_tasting.aggr import Aggregates

EVENT, PER, PRE, PRE_PER = ".event", ".per", ".pre", ".pre.per"
MIN_ADJUSTED = 10  # users of an arm: CUPED learns a slope from them


@dataclass(frozen=True)
class Columns:
    """Which columns of the user frame a metric is computed from; the `pre` ones adjust it (CUPED)."""

    value: str
    per: str | None = None
    pre: str | None = None
    pre_per: str | None = None

    @classmethod
    def of(cls, metric: MetricSpec, frame: pl.DataFrame) -> Columns:
        name, is_ratio = metric.name, metric.kind == "ratio"
        has_pre = name + PRE in frame.columns and (not is_ratio or name + PRE_PER in frame.columns)
        return cls(
            name,
            name + PER if is_ratio else None,
            name + PRE if has_pre else None,
            name + PRE_PER if has_pre and is_ratio else None,
        )

    @property
    def unadjusted(self) -> Columns:
        return Columns(self.value, self.per)

    def usable(self, *arms: Aggregates) -> Columns:
        """Without what came before exposure where it explains nothing (new users have no past) or, among a few,
        everything."""
        return self if all(self._has_past(arm) for arm in arms) else self.unadjusted

    def _has_past(self, arm: Aggregates) -> bool:
        if self.pre is None or arm.count() < MIN_ADJUSTED:
            return False
        if self.pre_per is not None and arm.mean(self.pre_per) <= 0:
            return False
        own, past = arm.ratio_var(self.value, self.per), arm.ratio_var(self.pre, self.pre_per)
        both = arm.ratio_cov(self.value, self.per, self.pre, self.pre_per)
        return bool(past > 0 and own * past - both * both > 1e-9 * own * past)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(name for name in (self.value, self.per, self.pre, self.pre_per) if name is not None)


def mature(frame: pl.DataFrame, metric: MetricSpec) -> pl.DataFrame:
    """Users whose window is over."""
    return frame.filter(pl.col(metric.name).is_not_null())


def capped(users: pl.DataFrame, metric: MetricSpec) -> tuple[pl.DataFrame, Capping | None]:
    """Values above the quantile of all arms' users together are set to it; each column of a ratio has its own.

    What came before exposure is capped alike, as the heaviest users would else decide how much CUPED takes away.
    """
    if metric.cap is None or users.is_empty():
        return users, None
    columns = Columns.of(metric, users)
    limits = {name: users[name].quantile(metric.cap, "higher") for name in columns.names}
    # A quantile of 0 would leave nothing of a rare action.
    kept = {name: limit for name, limit in limits.items() if limit is not None and limit > 0}
    touched = {name: int((users[name] > limit).sum()) for name, limit in kept.items()}
    cut = users.with_columns(pl.col(name).clip(upper_bound=limit) for name, limit in kept.items())
    return cut, Capping(
        quantile=metric.cap,
        value=kept.get(columns.value),
        num_capped=touched.get(columns.value, 0),
        per_value=kept.get(columns.per or ""),
        per_num_capped=touched.get(columns.per or "", 0),
    )


def moments(users: pl.DataFrame, by: Sequence[str], columns: Columns) -> dict[tuple[Any, ...], Aggregates]:
    """Of each group that has users."""
    from tea_tasting.aggr import Aggregates

    names = columns.names
    pairs = list(combinations(sorted(names), 2))
    found = users.group_by(by).agg(
        pl.len().alias("count"),
        *(pl.col(name).mean().alias(f"mean/{name}") for name in names),
        *(pl.col(name).var().fill_null(0.0).alias(f"var/{name}") for name in names),
        *(_covariance(*pair).alias("cov/" + "/".join(pair)) for pair in pairs),
    )
    return {
        tuple(row[name] for name in by): Aggregates(
            count_=row["count"],
            mean_={name: row[f"mean/{name}"] for name in names},
            var_={name: row[f"var/{name}"] for name in names},
            cov_={pair: row["cov/" + "/".join(pair)] for pair in pairs},
        )
        for row in found.iter_rows(named=True)  # a row a group
    }


def pooled(parts: Sequence[Aggregates]) -> Aggregates | None:
    """Of disjoint groups together; None without any."""
    return reduce(lambda left, right: left + right, parts) if parts else None


def _covariance(left: str, right: str) -> pl.Expr:
    sums = ((pl.col(left) - pl.col(left).mean()) * (pl.col(right) - pl.col(right).mean())).sum()
    return pl.when(pl.len() > 1).then(sums / (pl.len() - 1.0)).otherwise(0.0)
