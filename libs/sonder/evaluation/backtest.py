"""Does a score keep its promise as its model ages? One old model asked at several later cutoffs, and its drift.

Shapes: N rows, K outputs (1 but for next_category), C cutoffs (oldest first).
Per cutoff: AUC (the mean over outputs) or normalised Gini, PR-AUC, ECE and what it is by chance, predicted over
observed. Drift: slopes a week, by least squares over the cutoffs, of log(predicted / observed) and of ECE.
Interval of a slope (95 %): the wider of two. Users: its spread over bootstrap resamples of users (a user keeps all its
cutoffs). Times: Student's t around the line with C - 2 degrees of freedom, for what befalls all users of a week at
once and no resample of users shows.
Source: resampling as in sonder.evaluation.resampling; Ovadia et al. (2019) for calibration under shift.
Limits: with four cutoffs only a strong drift is beyond chance. Label windows that overlap make cutoffs alike and the
interval of times too narrow.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t as student

from sonder.evaluation.calibration_error import calibration_error, equal_mass_bins, errors_by_chance
from sonder.evaluation.ranked_rows import RankedRows, auc, average_precision, gini
from sonder.evaluation.resampling import CONFIDENCE, NUM_RESAMPLES, Interval, percentile_interval, resample
from sonder.history.timelines import MICROSECONDS_PER_DAY

LEAST_CUTOFFS = 3
_NORMAL = 1.959964


@dataclass(frozen=True)
class BacktestPoint:
    """One cutoff; what is None could not be measured there."""

    cutoff_us: int
    age_days: float | None  # of the model, from the end of what it was trained on; None: not told
    users: int
    positives: int  # pairs of a row and an output with an outcome above 0
    predicted: float  # mean over pairs
    observed: float
    auc: float | None
    pr_auc: float | None
    gini: float | None  # normalised; of means alone
    ece: float | None  # of probabilities alone
    ece_by_chance: float | None
    predicted_to_observed: float | None
    ratio_interval: Interval | None


@dataclass(frozen=True)
class Drift:
    """What changes a week; intervals are 95 %, None where nothing could be said."""

    weeks: float  # from the first to the last cutoff
    cutoffs: int
    ratio_a_week: float | None  # 0.04: predicted over observed grows by 4 % a week
    ratio_interval: Interval | None
    ece_a_week: float | None
    ece_interval: Interval | None
    is_beyond_chance: bool | None  # that of the ratio
    sentence: str


@dataclass(frozen=True)
class Backtest:
    """All cutoffs, oldest first, and what they say together."""

    points: tuple[BacktestPoint, ...]
    drift: Drift

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def evaluate_backtest(
    outcomes_NK: NDArray[Any],
    predictions_NK: NDArray[Any],
    cutoffs_us_N: NDArray[np.int64],
    user_codes_N: NDArray[np.int64],
    *,
    is_share: bool,
    trained_until_us: int | None = None,
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
) -> Backtest:
    """Measure each cutoff by itself, then all together; at least one row.

    `is_share`: probabilities of 0/1 outcomes, else means. `trained_until` is the last moment that the asked model knew.
    """
    cutoffs_us, place_N = np.unique(cutoffs_us_N, return_inverse=True)
    cells = _Cells(np.asarray(outcomes_NK, np.float64), np.asarray(predictions_NK, np.float64), place_N)
    values_RS = np.full((0, 2 * len(cutoffs_us)), np.nan)
    if num_resamples:
        values_RS = resample(cells, len(place_N), user_codes_N, num_resamples=num_resamples, seed=seed)
    points = []
    for place, cutoff_us in enumerate(cutoffs_us.tolist()):
        rows = np.flatnonzero(place_N == place)
        point = _point(cells.outcomes[rows], cells.predictions[rows], is_share, num_resamples, seed)
        age = None if trained_until_us is None else (cutoff_us - trained_until_us) / MICROSECONDS_PER_DAY
        interval = percentile_interval(np.exp(values_RS[:, place])) if num_resamples else None
        points.append(BacktestPoint(cutoff_us=cutoff_us, age_days=age, ratio_interval=interval, **point))
    return Backtest(tuple(points), _drift(points, values_RS, is_share))


class _Cells:
    """log(predicted / observed) of each cutoff, then its calibration error, as a function of the rows' weights."""

    def __init__(
        self, outcomes_NK: NDArray[np.float64], predictions_NK: NDArray[np.float64], place_N: NDArray[np.int64]
    ) -> None:
        self.outcomes, self.predictions, self.place = outcomes_NK, predictions_NK, place_N
        self.num_cutoffs = int(place_N.max()) + 1
        self.observed, self.expected = outcomes_NK.sum(axis=1), predictions_NK.sum(axis=1)
        cell_NK, first = np.empty(outcomes_NK.shape, dtype=np.int64), 0
        owners = []
        for place in range(self.num_cutoffs):
            rows = np.flatnonzero(place_N == place)
            bins = equal_mass_bins(predictions_NK[rows].ravel())
            cell_NK[rows] = first + bins.reshape(-1, outcomes_NK.shape[1])
            owners.append(np.full(int(bins.max()) + 1, place))
            first += int(bins.max()) + 1
        self.cell, self.owner = cell_NK.ravel(), np.concatenate(owners)
        self.gaps_NK = predictions_NK - outcomes_NK

    def __call__(self, weights_N: NDArray[np.float64]) -> NDArray[np.float64]:
        count = self.num_cutoffs
        expected, observed, num = (
            np.bincount(self.place, weights=weights_N * values, minlength=count)
            for values in (self.expected, self.observed, np.ones(len(weights_N)))
        )
        is_known = (observed > 0) & (expected > 0)
        logs = np.where(is_known, np.log(np.where(is_known, expected / np.where(is_known, observed, 1), 1)), np.nan)
        gaps = np.bincount(self.cell, weights=(weights_N[:, None] * self.gaps_NK).ravel(), minlength=len(self.owner))
        errors = np.bincount(self.owner, weights=np.abs(gaps), minlength=count)
        return np.concatenate([logs, errors / np.maximum(num * self.outcomes.shape[1], 1)])


def _point(
    outcomes_NK: NDArray[np.float64], predictions_NK: NDArray[np.float64], is_share: bool, num_draws: int, seed: int
) -> dict[str, Any]:
    aucs, precisions, ginis = [], [], []
    for outcomes, predictions in zip(outcomes_NK.T, predictions_NK.T, strict=True):
        rows = RankedRows(predictions)
        levels = rows.by_level(outcomes[rows.order]), rows.by_level(np.ones(len(outcomes)))
        if is_share:
            aucs.append(auc(*levels))
            precisions.append(average_precision(*levels))
        else:
            best = RankedRows(outcomes)
            own_best = gini(best.by_level(outcomes[best.order]), best.by_level(np.ones(len(outcomes))))
            ginis.append(gini(*levels) / own_best if own_best > 0 else math.nan)
    bins = equal_mass_bins(predictions_NK.ravel())
    chance_R = np.empty(0)
    if is_share:
        chance_R = errors_by_chance(predictions_NK.ravel(), bins, num_draws=num_draws, seed=seed)
    total = float(outcomes_NK.sum())
    return {
        "users": len(outcomes_NK),
        "positives": int(np.count_nonzero(outcomes_NK > 0)),
        "predicted": float(predictions_NK.mean()),
        "observed": float(outcomes_NK.mean()),
        "auc": _mean(aucs),
        "pr_auc": _mean(precisions),
        "gini": _mean(ginis),
        "ece": calibration_error(outcomes_NK.ravel(), predictions_NK.ravel(), bins) if is_share else None,
        "ece_by_chance": float(np.mean(chance_R)) if len(chance_R) else None,
        "predicted_to_observed": float(predictions_NK.sum()) / total if total > 0 else None,
    }


def _mean(values: Sequence[float]) -> float | None:
    known = [value for value in values if math.isfinite(value)]
    return sum(known) / len(known) if known else None


def _drift(points: Sequence[BacktestPoint], values_RS: NDArray[np.float64], is_share: bool) -> Drift:
    weeks_C = np.array([(point.cutoff_us - points[0].cutoff_us) / (7 * MICROSECONDS_PER_DAY) for point in points])
    ratios = [point.predicted_to_observed for point in points]
    nothing = Drift(float(weeks_C[-1]), len(points), None, None, None, None, None, "")
    if len(points) < LEAST_CUTOFFS:
        return replace(nothing, sentence=f"Drift is not told: {len(points)} cutoffs, {LEAST_CUTOFFS} are needed.")
    if len(values_RS) == 0:
        return replace(nothing, sentence="Drift is not told: nothing was resampled.")
    if not all(ratios):
        return replace(
            nothing, sentence="Drift is not told: nothing came true, or nothing was predicted, at one of the cutoffs."
        )
    logs_C = np.log(np.array(ratios, dtype=np.float64))
    slope, interval = slope_with_interval(weeks_C, logs_C, values_RS[:, : len(points)])
    ece_slope, ece_interval = None, None
    if is_share:
        eces_C = np.array([point.ece for point in points], dtype=np.float64)
        ece_slope, ece_interval = slope_with_interval(weeks_C, eces_C, values_RS[:, len(points) :])
    growth, low, high = math.expm1(slope), math.expm1(interval[0]), math.expm1(interval[1])
    is_beyond = not low <= 0 <= high
    drift = Drift(float(weeks_C[-1]), len(points), growth, (low, high), ece_slope, ece_interval, is_beyond, "")
    return replace(drift, sentence=_sentence(drift, ratios))


def _sentence(drift: Drift, ratios: Sequence[float | None]) -> str:
    assert drift.ratio_a_week is not None
    assert drift.ratio_interval is not None
    weeks = f"{drift.weeks:.0f} weeks" if drift.weeks >= 1.5 else f"{7 * drift.weeks:.0f} days"
    over = f"over {drift.cutoffs} cutoffs in {weeks}"
    span = f"95 % interval {_percent(drift.ratio_interval[0])} to {_percent(drift.ratio_interval[1])} %"
    if not drift.is_beyond_chance:
        return f"No drift of calibration beyond chance {over}: {_percent(drift.ratio_a_week)} % a week ({span})."
    first, last = ratios[0], ratios[-1]
    return (
        f"Calibration drifts by {_percent(drift.ratio_a_week)} % a week {over} ({span}): predicted over observed was"
        f" {first:.2f} at the first and {last:.2f} at the last."
    )


def _percent(share: float) -> str:
    return f"{100 * share:+.1f}"


def slope_with_interval(
    weeks_C: NDArray[np.float64], values_C: NDArray[np.float64], resampled_RC: NDArray[np.float64]
) -> tuple[float, Interval]:
    """Least-squares slope a week, and the wider of the intervals by users and by times (three cutoffs at least)."""
    centred = weeks_C - weeks_C.mean()
    spread = float(centred @ centred)
    slope = float(centred @ values_C / spread)
    resampled_R = resampled_RC[np.isfinite(resampled_RC).all(axis=1)] @ centred / spread
    by_users = _NORMAL * float(resampled_R.std(ddof=1)) if len(resampled_R) > 1 else 0.0
    residuals = values_C - values_C.mean() - slope * centred
    freedom = len(weeks_C) - 2
    by_times = float(student.ppf((1 + CONFIDENCE) / 2, freedom)) * math.sqrt(
        float(residuals @ residuals) / freedom / spread
    )
    half = max(by_users, by_times)
    return slope, (slope - half, slope + half)
