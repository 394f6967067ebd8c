"""How good is a calibrated score? Ranking (AUC, PR-AUC, lift), calibration (ECE, reliability curve), both (log loss).

auc              area under the ROC curve; None unless both outcomes occur
pr_auc           average precision (the step-wise sum, not the trapezoid); to be read against the base rate
top_decile_lift  share of positives in the best-scored tenth over the base rate; 1 is chance, 10 the most there is
ece              expected calibration error over 15 equal-mass bins: mean |predicted - observed|, weighted by users
ece_by_chance    what a perfectly calibrated score has on as many users, on average; `_at_most` in 95 of 100 cases
predicted_to_observed   calibration in the large: predicted over observed positives
Bins: edges are quantiles of the predictions and equal predictions are never parted, so isotonic scores with few levels
give fewer bins and the order of the users changes nothing. Intervals: 95 %, sonder.evaluation.resampling has the
method and its limits.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import brier_score_loss

from sonder.evaluation.calibration_error import (
    NUM_BINS,
    equal_mass_bins,
    error_interval,
    errors_by_chance,
)
from sonder.evaluation.ranked_rows import LiftPoint, RankedRows, auc, average_precision, lift_curve, top_share
from sonder.evaluation.resampling import NUM_RESAMPLES, Interval, percentile_interval, resample

MEASURED = (
    *("auc", "pr_auc", "ece", "base_rate", "users", "log_loss", "brier"),
    *("top_decile_lift", "ece_by_chance", "predicted_to_observed"),
)
_RESAMPLED = ("auc", "pr_auc", "top_decile_lift", "log_loss", "predicted_to_observed", "ece")


@dataclass(frozen=True)
class CalibrationPoint:
    """One bin of the reliability curve."""

    predicted: float  # mean prediction
    observed: float  # share of users for whom it came true
    users: int


@dataclass(frozen=True)
class ScoreQuality:
    """Quality of one score on one set of users; what is None could not be measured, and `reason` says why."""

    users: int
    positives: int
    base_rate: float | None
    auc: float | None
    pr_auc: float | None
    ece: float | None
    log_loss: float | None
    brier: float | None
    curve: tuple[CalibrationPoint, ...]
    reason: str | None
    top_decile_lift: float | None = None
    ece_by_chance: float | None = None
    ece_by_chance_at_most: float | None = None
    predicted_to_observed: float | None = None
    lift_curve: tuple[LiftPoint, ...] = ()
    intervals: Mapping[str, Interval] = field(default_factory=dict)  # 95 %, for what could be resampled
    num_resamples: int = 0

    def metrics(self, name: str) -> dict[str, float]:
        """`scores.<name>.<key>` for the keys of MEASURED, without what was not measured."""
        return {f"scores.{name}.{key}": value for key in MEASURED if (value := getattr(self, key)) is not None}

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> ScoreQuality:
        """Also of what was written before there were intervals."""
        read = {
            "curve": tuple(CalibrationPoint(**point) for point in content["curve"]),
            "lift_curve": tuple(LiftPoint(**point) for point in content.get("lift_curve", ())),
            "intervals": {key: tuple(ends) for key, ends in content.get("intervals", {}).items()},
        }
        return cls(**{**content, **read})


def evaluate_score(
    labels_U: NDArray[Any],
    probabilities_U: NDArray[Any],
    *,
    user_codes_U: NDArray[np.int64] | None = None,
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
) -> ScoreQuality:
    """Compare probabilities in [0, 1] with what happened (bool or 0/1), one of each per row.

    `user_codes` (0 … number of users - 1) says whose row it is where users have several; None: a row is a user.
    `num_resamples` 0 leaves intervals and chance out. ValueError for what is no probability or no label.
    """
    labels, probabilities = _checked(labels_U, probabilities_U)
    users, positives = len(labels), int(labels.sum())
    if users == 0:
        return ScoreQuality(0, 0, None, None, None, None, None, None, (), "no user to measure on")
    has_both = 0 < positives < users
    measure = _Measures(labels, probabilities)
    whole = dict(zip(_RESAMPLED, measure(np.ones(users)).tolist(), strict=True))
    intervals, chance_R = _uncertainty(measure, probabilities, user_codes_U, whole["ece"], num_resamples, seed)
    has_chance = len(chance_R) > 0
    return ScoreQuality(
        users=users,
        positives=positives,
        base_rate=positives / users,
        auc=whole["auc"] if has_both else None,
        pr_auc=whole["pr_auc"] if has_both else None,
        ece=whole["ece"],
        log_loss=whole["log_loss"],
        brier=float(brier_score_loss(labels, probabilities, pos_label=1)),
        curve=reliability_curve(labels, probabilities),
        reason=None if has_both else f"it came true for {'all' if positives else 'none'} of {users:,} users",
        top_decile_lift=whole["top_decile_lift"] if has_both else None,
        ece_by_chance=float(chance_R.mean()) if has_chance else None,
        ece_by_chance_at_most=float(np.quantile(chance_R, 0.95)) if has_chance else None,
        predicted_to_observed=whole["predicted_to_observed"] if positives else None,
        lift_curve=lift_curve(labels, probabilities),
        intervals=intervals if has_both else {},
        num_resamples=num_resamples,
    )


def reliability_curve(
    labels_U: NDArray[Any], probabilities_U: NDArray[np.float64], num_bins: int = NUM_BINS
) -> tuple[CalibrationPoint, ...]:
    """Bins of about equally many users by rising prediction."""
    bins = equal_mass_bins(probabilities_U, num_bins)
    counts = np.bincount(bins)
    predicted = np.bincount(bins, weights=probabilities_U)
    observed = np.bincount(bins, weights=labels_U)
    return tuple(
        CalibrationPoint(float(p / n), float(o / n), int(n))
        for p, o, n in zip(predicted, observed, counts, strict=True)
    )


class _Measures:
    """The numbers of _RESAMPLED as a function of how often each row counts."""

    def __init__(self, labels_U: NDArray[np.int8], probabilities_U: NDArray[np.float64]) -> None:
        self.rows = RankedRows(probabilities_U)
        order = self.rows.order
        self.labels, self.probabilities = labels_U[order].astype(np.float64), probabilities_U[order]
        self.losses = row_log_losses(self.labels, self.probabilities)
        bins = equal_mass_bins(probabilities_U)[order]  # falling, because rows are
        self.bin_starts = np.flatnonzero(np.diff(bins, prepend=-1))
        self.gaps = self.probabilities - self.labels

    def __call__(self, weights_U: NDArray[np.float64]) -> NDArray[np.float64]:
        """Rows are in the order of `self.rows`."""
        positives_U = weights_U * self.labels
        positives_L, weights_L = self.rows.by_level(positives_U), self.rows.by_level(weights_U)
        num, came_true = weights_U.sum(), positives_U.sum()
        errors_B = np.add.reduceat(weights_U * self.gaps, self.bin_starts)
        return np.array(
            [
                auc(positives_L, weights_L),
                average_precision(positives_L, weights_L),
                10 * top_share(positives_L, weights_L, 0.1),
                weights_U @ self.losses / num,
                weights_U @ self.probabilities / came_true if came_true > 0 else np.nan,
                np.abs(errors_B).sum() / num,
            ]
        )


def row_log_losses(labels_N: NDArray[np.float64], probabilities_N: NDArray[np.float64]) -> NDArray[np.float64]:
    """Minus the log of the chance given to what happened; as sklearn, that chance is at least the float's epsilon."""
    epsilon = float(np.finfo(np.float64).eps)
    given = np.where(labels_N > 0, probabilities_N, 1 - probabilities_N)
    losses: NDArray[np.float64] = -np.log(np.clip(given, epsilon, 1 - epsilon))
    return losses


def _uncertainty(
    measure: _Measures,
    probabilities_U: NDArray[np.float64],
    user_codes_U: NDArray[np.int64] | None,
    ece: float,
    num_resamples: int,
    seed: int,
) -> tuple[dict[str, Interval], NDArray[np.float64]]:
    """Interval by name, and ECE by chance for each draw."""
    if num_resamples == 0:
        return {}, np.empty(0)
    codes = None if user_codes_U is None else user_codes_U[measure.rows.order]
    values_RS = resample(measure, len(probabilities_U), codes, num_resamples=num_resamples, seed=seed)
    chance_R = errors_by_chance(
        probabilities_U, equal_mass_bins(probabilities_U), num_draws=num_resamples, seed=seed + 1
    )
    found = {name: percentile_interval(values_RS[:, place]) for place, name in enumerate(_RESAMPLED)}
    found["ece"] = error_interval(ece, values_RS[:, _RESAMPLED.index("ece")], chance_R)
    return {name: interval for name, interval in found.items() if interval is not None}, chance_R


def _checked(labels_U: NDArray[Any], probabilities_U: NDArray[Any]) -> tuple[NDArray[np.int8], NDArray[np.float64]]:
    labels, probabilities = np.asarray(labels_U), np.asarray(probabilities_U, dtype=np.float64)
    if labels.shape != probabilities.shape or labels.ndim != 1:
        raise ValueError(
            f"labels {labels.shape} and probabilities {probabilities.shape}, expected one of each per user"
        )
    if not np.isin(labels, (0, 1)).all():
        raise ValueError("labels hold other values than 0 and 1")
    if not ((probabilities >= 0) & (probabilities <= 1)).all():  # NaN fails both
        raise ValueError("probabilities lie outside [0, 1] or are NaN")
    return labels.astype(np.int8), probabilities
