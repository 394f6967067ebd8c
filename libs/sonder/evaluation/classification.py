"""How good is a calibrated score? Ranking (AUC, PR-AUC), calibration (ECE, reliability curve), both (log loss, Brier).

auc           area under the ROC curve; None unless both outcomes occur
pr_auc        average precision (the step-wise sum, not the trapezoid); to be read against the base rate
ece           expected calibration error over 15 equal-mass bins: mean |predicted - observed|, weighted by users
Bins: edges are quantiles of the predictions and equal predictions are never parted, so isotonic scores with few levels
give fewer bins and the order of the users changes nothing.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, brier_score_loss, log_loss, roc_auc_score

NUM_BINS = 15


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

    def metrics(self, name: str) -> dict[str, float]:
        """`scores.<name>.{auc,pr_auc,ece,base_rate,users,log_loss,brier}`, without what was not measured."""
        keys = ("auc", "pr_auc", "ece", "base_rate", "users", "log_loss", "brier")
        return {f"scores.{name}.{key}": value for key in keys if (value := getattr(self, key)) is not None}

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> ScoreQuality:
        return cls(**{**content, "curve": tuple(CalibrationPoint(**point) for point in content["curve"])})


def evaluate_score(labels_U: NDArray[Any], probabilities_U: NDArray[Any]) -> ScoreQuality:
    """Compare probabilities in [0, 1] with what happened (bool or 0/1), one of each per user."""
    labels, probabilities = np.asarray(labels_U), np.asarray(probabilities_U, dtype=np.float64)
    if labels.shape != probabilities.shape or labels.ndim != 1:
        raise ValueError(
            f"labels {labels.shape} and probabilities {probabilities.shape}, expected one of each per user"
        )
    if not np.isin(labels, (0, 1)).all():
        raise ValueError("labels hold other values than 0 and 1")
    if not ((probabilities >= 0) & (probabilities <= 1)).all():  # NaN fails both
        raise ValueError("probabilities lie outside [0, 1] or are NaN")
    labels = labels.astype(np.int8)
    users, positives = len(labels), int(labels.sum())
    if users == 0:
        return ScoreQuality(0, 0, None, None, None, None, None, None, (), "no user to measure on")
    has_both = 0 < positives < users
    curve = reliability_curve(labels, probabilities)
    return ScoreQuality(
        users=users,
        positives=positives,
        base_rate=positives / users,
        auc=float(roc_auc_score(labels, probabilities)) if has_both else None,
        pr_auc=float(average_precision_score(labels, probabilities)) if has_both else None,
        ece=sum(point.users * abs(point.predicted - point.observed) for point in curve) / users,
        log_loss=float(log_loss(labels, probabilities, labels=[0, 1])),
        brier=float(brier_score_loss(labels, probabilities, pos_label=1)),
        curve=curve,
        reason=None if has_both else f"it came true for {'all' if positives else 'none'} of {users:,} users",
    )


def reliability_curve(
    labels_U: NDArray[Any], probabilities_U: NDArray[np.float64], num_bins: int = NUM_BINS
) -> tuple[CalibrationPoint, ...]:
    """Bins of about equally many users by rising prediction."""
    inner = np.quantile(probabilities_U, np.arange(1, num_bins) / num_bins, method="inverted_cdf")
    bins = np.searchsorted(np.unique(inner), probabilities_U, side="left")  # a bin ends with its upper edge
    counts = np.bincount(bins)
    predicted = np.bincount(bins, weights=probabilities_U)
    observed = np.bincount(bins, weights=labels_U)
    return tuple(
        CalibrationPoint(float(p / n), float(o / n), int(n))
        for p, o, n in zip(predicted, observed, counts, strict=True)
        if n
    )
