"""Statistics of an order: rows from the highest score down, equal scores as one level that is never parted.

Shapes: N rows, L levels of equal score (highest first), D tenths.
Weights say how often a row counts, so the same code measures a sample and its bootstrap resamples in one pass.
auc                area under the ROC curve, ties count one half (Mann-Whitney)
average_precision  step-wise sum over levels, as sklearn
top_share          part of all outcomes that the best-scored share of rows holds
gini               twice the area between the curve of top_share and the diagonal
A level that a cut goes through gives its part by expectation, so the order of the rows changes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

NUM_TENTHS = 10


@dataclass(frozen=True)
class LiftPoint:
    """One tenth of the users, best-scored first."""

    tenth: int  # 1 is the best-scored
    users: float  # a tenth of all, whole or not
    predicted: float  # mean
    observed: float  # mean: a share of users, or of value a user
    cumulative_share: float | None  # of all positives (or value) that this tenth and the better ones hold


class RankedRows:
    """Rows sorted by score once; every method takes values in that order (`order` sorts them)."""

    def __init__(self, scores_N: NDArray[np.float64]) -> None:
        self.order = np.argsort(-scores_N, kind="stable")
        ranked = scores_N[self.order]
        starts = np.flatnonzero(np.concatenate(([True], ranked[1:] != ranked[:-1])))
        self._starts = None if len(starts) == len(ranked) else starts  # None: every row is a level

    def by_level(self, values_N: NDArray[np.float64]) -> NDArray[np.float64]:
        """Sum of each level [L]."""
        if self._starts is None:
            return values_N
        sums: NDArray[np.float64] = np.add.reduceat(values_N, self._starts)
        return sums


def auc(positives_L: NDArray[np.float64], weights_L: NDArray[np.float64]) -> float:
    """Chance that a positive stands above a negative; NaN unless both occur."""
    negatives_L = weights_L - positives_L
    below_L = negatives_L.sum() - np.cumsum(negatives_L) + negatives_L / 2
    pairs = positives_L.sum() * negatives_L.sum()
    return float(positives_L @ below_L / pairs) if pairs > 0 else float("nan")


def average_precision(positives_L: NDArray[np.float64], weights_L: NDArray[np.float64]) -> float:
    """Mean precision at each positive; NaN without one."""
    total = positives_L.sum()
    if not total > 0:
        return float("nan")
    seen_L = np.maximum(np.cumsum(weights_L), 1e-300)
    return float(np.sum(positives_L * np.cumsum(positives_L) / seen_L) / total)


def top_share(outcomes_L: NDArray[np.float64], weights_L: NDArray[np.float64], share: float = 0.1) -> float:
    """Part of all outcomes in the best-scored `share` of rows; NaN unless they sum to more than 0."""
    total = outcomes_L.sum()
    if not total > 0:
        return float("nan")
    cumulative = np.cumsum(weights_L)
    wanted = share * cumulative[-1]
    level = int(np.searchsorted(cumulative, wanted))  # the level that the cut goes through
    before, before_outcomes = (cumulative[level - 1], outcomes_L[:level].sum()) if level else (0.0, 0.0)
    part = (wanted - before) / max(weights_L[level], 1e-300)
    return float((before_outcomes + part * outcomes_L[level]) / total)


def gini(outcomes_L: NDArray[np.float64], weights_L: NDArray[np.float64]) -> float:
    """In [-1, 1]; 0 for a random order; NaN unless the outcomes sum to more than 0."""
    total, num = outcomes_L.sum(), weights_L.sum()
    if not total > 0:
        return float("nan")
    reached_L = np.cumsum(outcomes_L)
    area = np.sum(weights_L * (reached_L - outcomes_L / 2)) / (num * total)
    return float(2 * area - 1)


def lift_curve(outcomes_N: NDArray[Any], predictions_N: NDArray[np.float64]) -> tuple[LiftPoint, ...]:
    """Ten tenths of the rows (at least one), best-scored first."""
    rows = RankedRows(predictions_N)
    num = len(predictions_N)
    ends_L = np.cumsum(rows.by_level(np.ones(num)))
    cuts = np.linspace(0, num, NUM_TENTHS + 1)

    def reached(values_N: NDArray[np.float64]) -> NDArray[np.float64]:
        sums = np.cumsum(rows.by_level(values_N[rows.order]))
        return np.interp(cuts, np.concatenate(([0.0], ends_L)), np.concatenate(([0.0], sums)))

    predicted, observed = reached(predictions_N), reached(np.asarray(outcomes_N, dtype=np.float64))
    users = num / NUM_TENTHS
    return tuple(
        LiftPoint(
            tenth=tenth,
            users=users,
            predicted=float((predicted[tenth] - predicted[tenth - 1]) / users),
            observed=float((observed[tenth] - observed[tenth - 1]) / users),
            cumulative_share=float(observed[tenth] / observed[-1]) if observed[-1] > 0 else None,
        )
        for tenth in range(1, NUM_TENTHS + 1)
    )
