"""How good are the chances of the next categories? One row a user, one column a category.

Shapes: N rows, K categories.
macro_auc      mean AUC of the categories that have both outcomes; weighted_auc: weighted by their positives
ece            over all N x K pairs, against what a calibrated score has by chance (sonder.evaluation.calibration_error)
precision_at_1 share of rows whose best category came true, whether or not anything did
recall_at_k    part of a row's categories that its best k hold, mean over rows that have any
popular_*      the same of the same list for everybody, best the most popular; `*_gain` is the difference, paired
Intervals: 95 %, bootstrap over users, all their pairs together. Equal chances share a place by expectation.
Limits: categories of a user come together, so ECE by chance, which draws each alone, reaches a little higher in truth.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sonder.evaluation.calibration_error import (
    equal_mass_bins,
    error_interval,
    errors_by_chance,
)
from sonder.evaluation.classification import row_log_losses
from sonder.evaluation.ranked_rows import RankedRows, auc
from sonder.evaluation.resampling import NUM_RESAMPLES, Interval, percentile_interval, resample

NUM_LISTED = 3  # the k of recall
MEASURED = (
    *("users", "categories", "macro_auc", "weighted_auc", "ece", "ece_by_chance", "log_loss"),
    *("predicted_to_observed", "precision_at_1", "popular_precision_at_1", "recall_at_k", "popular_recall_at_k"),
)


@dataclass(frozen=True)
class CategoryPoint:
    """One category."""

    name: str
    positives: int
    predicted: float  # mean chance
    observed: float  # share of rows
    auc: float | None


@dataclass(frozen=True)
class CategoryQuality:
    """Quality of a score per category; what is None could not be measured, and `reason` says why."""

    users: int  # rows, as in ScoreQuality
    categories: int
    positives: int  # pairs
    macro_auc: float | None
    weighted_auc: float | None
    ece: float | None
    ece_by_chance: float | None
    ece_by_chance_at_most: float | None
    log_loss: float | None  # mean over pairs
    predicted_to_observed: float | None
    k: int
    precision_at_1: float | None
    popular_precision_at_1: float | None
    recall_at_k: float | None
    popular_recall_at_k: float | None
    per_category: tuple[CategoryPoint, ...]
    intervals: Mapping[str, Interval]
    num_resamples: int
    reason: str | None

    def metrics(self, name: str) -> dict[str, float]:
        """`scores.<name>.<key>`, recall with its k, without what was not measured."""
        keys = {key: key.replace("_at_k", f"_at_{self.k}") for key in MEASURED}
        return {
            f"scores.{name}.{told}": value for key, told in keys.items() if (value := getattr(self, key)) is not None
        }

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def evaluate_categories(
    labels_NK: NDArray[Any],
    chances_NK: NDArray[Any],
    names: Sequence[str],
    *,
    popularity_K: NDArray[Any] | None = None,
    user_codes_N: NDArray[np.int64] | None = None,
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
) -> CategoryQuality:
    """Compare the chances with what came true (0/1).

    `popularity` is known before the test (shares in the training rows); None takes the mean chance of each category,
    which is what the model holds for popular.
    """
    labels, chances = _checked(labels_NK, chances_NK, names)
    num, num_categories = labels.shape
    if num == 0 or not labels.any():
        return _unmeasured(
            num, num_categories, "no user to measure on" if num == 0 else f"nothing came of {num:,} rows"
        )
    popularity = chances.mean(axis=0) if popularity_K is None else np.asarray(popularity_K, dtype=np.float64)
    measure = _Measures(labels, chances, np.broadcast_to(popularity, chances.shape))
    whole = dict(zip(_Measures.NAMES, measure(np.ones(num)).tolist(), strict=True))
    intervals, chance_R = _uncertainty(measure, user_codes_N, whole["ece"], num_resamples, seed)
    aucs = measure.aucs(np.ones(num))
    return CategoryQuality(
        users=num,
        categories=num_categories,
        positives=int(labels.sum()),
        macro_auc=_known(whole["macro_auc"]),
        weighted_auc=_known(whole["weighted_auc"]),
        ece=whole["ece"],
        ece_by_chance=float(chance_R.mean()) if len(chance_R) else None,
        ece_by_chance_at_most=float(np.quantile(chance_R, 0.95)) if len(chance_R) else None,
        log_loss=float(row_log_losses(labels, chances).mean()),
        predicted_to_observed=whole["predicted_to_observed"],
        k=measure.k,
        precision_at_1=whole["precision_at_1"],
        popular_precision_at_1=whole["precision_at_1"] - whole["precision_at_1_gain"],
        recall_at_k=whole["recall_at_k"],
        popular_recall_at_k=whole["recall_at_k"] - whole["recall_at_k_gain"],
        per_category=tuple(
            CategoryPoint(
                names[k],
                int(labels[:, k].sum()),
                float(chances[:, k].mean()),
                float(labels[:, k].mean()),
                _known(aucs[k]),
            )
            for k in range(num_categories)
        ),
        intervals=intervals,
        num_resamples=num_resamples,
        reason=None,
    )


def listed(chances_NK: NDArray[np.float64], k: int) -> NDArray[np.float64]:
    """How much of each category is in the best k of its row [N, K]; rows sum to k, ties share what is left."""
    last_N1 = -np.partition(-chances_NK, k - 1, axis=1)[:, k - 1 : k]
    above, level = chances_NK > last_N1, chances_NK == last_N1
    left = k - above.sum(axis=1, keepdims=True)
    shares: NDArray[np.float64] = above + level * (left / level.sum(axis=1, keepdims=True))
    return shares


class _Measures:
    """The numbers of NAMES as a function of how often each row counts."""

    NAMES = (
        *("macro_auc", "weighted_auc", "predicted_to_observed", "precision_at_1", "precision_at_1_gain"),
        *("recall_at_k", "recall_at_k_gain", "ece"),
    )

    def __init__(
        self, labels_NK: NDArray[np.float64], chances_NK: NDArray[np.float64], popularity_NK: NDArray[np.float64]
    ) -> None:
        self.labels, self.chances = labels_NK, chances_NK
        self.k = min(NUM_LISTED, labels_NK.shape[1])
        self.ranked = [RankedRows(column) for column in chances_NK.T]
        self.num_true, self.num_expected = labels_NK.sum(axis=1), chances_NK.sum(axis=1)
        self.bins_NK = equal_mass_bins(chances_NK.ravel()).reshape(chances_NK.shape)
        self.gaps_NK = chances_NK - labels_NK
        own, popular = ([self._found(given, k) for k in (1, self.k)] for given in (chances_NK, popularity_NK))
        self.hits, self.hits_gain = own[0], own[0] - popular[0]
        self.recalls, self.recalls_gain = (
            found / np.maximum(self.num_true, 1) for found in (own[1], own[1] - popular[1])
        )

    def _found(self, given_NK: NDArray[np.float64], k: int) -> NDArray[np.float64]:
        found: NDArray[np.float64] = (listed(given_NK, k) * self.labels).sum(axis=1)
        return found

    def aucs(self, weights_N: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.array(
            [
                auc(*(rows.by_level(part[rows.order]) for part in (weights_N * self.labels[:, k], weights_N)))
                for k, rows in enumerate(self.ranked)
            ]
        )

    def __call__(self, weights_N: NDArray[np.float64]) -> NDArray[np.float64]:
        num, came_true = weights_N.sum(), weights_N @ self.num_true
        if not came_true > 0:
            return np.full(len(self.NAMES), np.nan)
        aucs_K = self.aucs(weights_N)
        is_known, positives_K = np.isfinite(aucs_K), weights_N @ self.labels
        macro = aucs_K[is_known].mean() if is_known.any() else np.nan
        weighted = np.average(aucs_K[is_known], weights=positives_K[is_known]) if is_known.any() else np.nan
        with_any = weights_N @ (self.num_true > 0)
        errors_B = np.bincount(self.bins_NK.ravel(), weights=(weights_N[:, None] * self.gaps_NK).ravel())
        return np.array(
            [
                macro,
                weighted,
                weights_N @ self.num_expected / came_true,
                weights_N @ self.hits / num,
                weights_N @ self.hits_gain / num,
                weights_N @ self.recalls / with_any,
                weights_N @ self.recalls_gain / with_any,
                np.abs(errors_B).sum() / (num * self.labels.shape[1]),
            ]
        )


def _uncertainty(
    measure: _Measures, user_codes_N: NDArray[np.int64] | None, ece: float, num_resamples: int, seed: int
) -> tuple[dict[str, Interval], NDArray[np.float64]]:
    if num_resamples == 0:
        return {}, np.empty(0)
    values_RS = resample(measure, len(measure.labels), user_codes_N, num_resamples=num_resamples, seed=seed)
    chance_R = errors_by_chance(
        measure.chances.ravel(), measure.bins_NK.ravel(), num_draws=num_resamples, seed=seed + 1
    )
    found = {name: percentile_interval(values_RS[:, place]) for place, name in enumerate(measure.NAMES)}
    found["ece"] = error_interval(ece, values_RS[:, measure.NAMES.index("ece")], chance_R)
    return {name: interval for name, interval in found.items() if interval is not None}, chance_R


def _unmeasured(num: int, num_categories: int, reason: str) -> CategoryQuality:
    none: dict[str, Any] = dict.fromkeys((*MEASURED, "ece_by_chance_at_most"), None)
    given = {"users": num, "categories": num_categories, "positives": 0, "k": min(NUM_LISTED, num_categories)}
    return CategoryQuality(
        **(none | given | {"per_category": (), "intervals": {}, "num_resamples": 0, "reason": reason})
    )


def _known(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _checked(
    labels_NK: NDArray[Any], chances_NK: NDArray[Any], names: Sequence[str]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    labels, chances = (np.asarray(values, dtype=np.float64) for values in (labels_NK, chances_NK))
    if labels.shape != chances.shape or labels.ndim != 2 or labels.shape[1] != len(names):
        raise ValueError(f"labels {labels.shape}, chances {chances.shape}, expected [rows, {len(names)} categories]")
    if not np.isin(labels, (0, 1)).all() or not ((chances >= 0) & (chances <= 1)).all():
        raise ValueError("labels hold other values than 0 and 1, or chances lie outside [0, 1] or are NaN")
    return labels, chances
