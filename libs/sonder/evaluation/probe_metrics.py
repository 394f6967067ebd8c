"""How well a probe's answers fit what came, as functions of how often each user counts.

Shapes: T users, K outputs, R resamples.
auc               area under the ROC curve; of several outputs their plain mean (macro)
spearman          rank correlation of score and outcome, midranks for ties; 0 for a score that is the same for all
poisson_deviance  Poisson's, mean over users; lower is better
nmae              mean absolute error of the log amount over that of the constant that training users have on average:
                  1 says nothing, lower is better
`normalised` puts the first metric of each question on one scale, 0 for a constant and 1 for a perfect order:
2 auc - 1, and spearman itself.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from sonder.evaluation.ranked_rows import RankedRows, auc
from sonder.evaluation.score_means import unit_deviances

Floats = NDArray[np.float64]
Measure = Callable[[Floats], float]  # how often each user counts [T] -> the number
LOWER_IS_BETTER = ("poisson_deviance", "nmae")


def macro_auc(labels_TK: Floats, scores_TK: Floats) -> Measure:
    """Mean over outputs; one that a resample has only one outcome of is left out of that resample."""
    ranked = [RankedRows(scores_TK[:, place]) for place in range(scores_TK.shape[1])]
    labels = [labels_TK[rows.order, place] for place, rows in enumerate(ranked)]

    def measure(weights_T: Floats) -> float:
        found = np.empty(len(ranked))
        for place, (rows, labels_T) in enumerate(zip(ranked, labels, strict=True)):
            ordered_T = weights_T[rows.order]
            found[place] = auc(rows.by_level(ordered_T * labels_T), rows.by_level(ordered_T))
        known = found[np.isfinite(found)]
        return float(known.mean()) if len(known) else float("nan")

    return measure


def spearman(outcomes_T: Floats, scores_T: Floats) -> Measure:
    """Pearson's correlation of midranks, which are those of the resample."""
    both = [RankedRows(outcomes_T), RankedRows(scores_T)]
    levels = [np.cumsum(np.concatenate(([0], np.diff(part[rows.order]) != 0))) for rows, part in
              zip(both, (outcomes_T, scores_T), strict=True)]  # fmt: skip

    def measure(weights_T: Floats) -> float:
        ranks = []
        for rows, levels_T in zip(both, levels, strict=True):
            weights_L = rows.by_level(weights_T[rows.order])
            middle_L = np.cumsum(weights_L) - weights_L / 2
            ranks_T = np.empty(len(weights_T))
            ranks_T[rows.order] = middle_L[levels_T]
            ranks.append(ranks_T - weights_T @ ranks_T / weights_T.sum())
        spreads = [float(weights_T @ ranks_T**2) for ranks_T in ranks]
        if min(spreads) < 1e-9:
            return 0.0
        return float(weights_T @ (ranks[0] * ranks[1]) / np.sqrt(spreads[0] * spreads[1]))

    return measure


def poisson_deviance(outcomes_T: Floats, means_T: Floats) -> Measure:
    deviances_T = unit_deviances(outcomes_T, means_T, 1.0)
    return lambda weights_T: float(weights_T @ deviances_T / weights_T.sum())


def nmae(logs_T: Floats, predicted_T: Floats, constant: float) -> Measure:
    errors_T, of_constant_T = np.abs(logs_T - predicted_T), np.abs(logs_T - constant)
    return lambda weights_T: float(weights_T @ errors_T / (weights_T @ of_constant_T))


def normalised(metric: str, value: Floats) -> Floats:
    """0 for a constant, 1 for a perfect order."""
    if metric == "auc":
        return 2 * value - 1
    if metric == "spearman":
        return value
    raise ValueError(f"{metric} has no common scale")
