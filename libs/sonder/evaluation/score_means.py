"""How good is an expected value or an expected count? Calibration in money, order, and deviance.

Shapes: N rows.
predicted_to_observed   total predicted over total observed
calibration_error       mean |predicted - observed| over tenths of the rows, as a share of the observed mean
gini                    normalised: 1 is the best order there is, 0 a random one (ties by expectation)
spearman                rank correlation of prediction and outcome
top_decile_share        part of all value in the best-scored tenth; `top_decile_lift` is ten times that
deviance                Tweedie's of power `power` (1: Poisson, for counts), as sklearn; mean over rows
deviance_explained      D2 = 1 - deviance / that of the best constant, which knows the observed mean; below 0 is worse
Intervals: 95 %, bootstrap over users. Source: Jorgensen (1997) for Tweedie; Frees, Meyers and Cummings (2011), Gini.
Limits: a mean of heavy-tailed value rests on few users; its bootstrap interval is then too narrow. Outcomes below 0
(refunds) have no deviance. A prediction of 0 is read as a millionth of the mean prediction there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import xlogy
from scipy.stats import rankdata

from sonder.evaluation.calibration_error import calibration_error, equal_mass_bins
from sonder.evaluation.ranked_rows import LiftPoint, RankedRows, gini, lift_curve, top_share
from sonder.evaluation.resampling import NUM_RESAMPLES, Interval, percentile_interval, resample
from sonder.evaluation.score_slices import NUM_TENTHS

MEASURED = (
    *("users", "predicted_mean", "observed_mean", "share_zero", "predicted_to_observed", "calibration_error"),
    *("gini", "spearman", "top_decile_share", "top_decile_lift", "deviance", "deviance_explained"),
)
_RESAMPLED = ("predicted_to_observed", "gini", "top_decile_share", "deviance_explained")


@dataclass(frozen=True)
class MeanQuality:
    """Quality of one expected value or count; what is None could not be measured, and `reason` says why."""

    users: int  # rows, as in ScoreQuality
    predicted_mean: float | None
    observed_mean: float | None
    share_zero: float | None
    predicted_to_observed: float | None
    calibration_error: float | None
    gini: float | None
    spearman: float | None
    top_decile_share: float | None
    top_decile_lift: float | None
    power: float
    deviance: float | None
    deviance_explained: float | None
    lift_curve: tuple[LiftPoint, ...]
    intervals: Mapping[str, Interval]
    num_resamples: int
    reason: str | None

    def metrics(self, name: str) -> dict[str, float]:
        """`scores.<name>.<key>` for the keys of MEASURED, without what was not measured."""
        return {f"scores.{name}.{key}": value for key in MEASURED if (value := getattr(self, key)) is not None}

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def evaluate_mean(
    outcomes_N: NDArray[Any],
    predictions_N: NDArray[Any],
    *,
    power: float,
    user_codes_N: NDArray[np.int64] | None = None,
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
) -> MeanQuality:
    """Compare predictions >= 0 with what came; `power` of Tweedie's deviance in [1, 2), 1 for counts."""
    outcomes, predictions = _checked(outcomes_N, predictions_N, power)
    num, total = len(outcomes), float(outcomes.sum())
    if num == 0 or not total > 0:
        reason = "no user to measure on" if num == 0 else f"no value came from {num:,} rows: they sum to {total:g}"
        none: dict[str, Any] = dict.fromkeys(MEASURED[1:])
        given = {"users": num, "power": power, "lift_curve": (), "intervals": {}, "num_resamples": 0}
        return MeanQuality(**(none | given | {"reason": reason}))
    measure = _Measures(outcomes, predictions, power)
    whole = dict(zip(_RESAMPLED, measure(np.ones(num)).tolist(), strict=True))
    bins = equal_mass_bins(predictions, NUM_TENTHS)
    has_deviance = measure.unit_deviances is not None
    return MeanQuality(
        users=num,
        predicted_mean=float(predictions.mean()),
        observed_mean=total / num,
        share_zero=float(np.mean(outcomes == 0)),
        predicted_to_observed=whole["predicted_to_observed"],
        calibration_error=calibration_error(outcomes, predictions, bins) / (total / num),
        gini=_known(whole["gini"]),
        spearman=_spearman(outcomes, predictions),
        top_decile_share=whole["top_decile_share"],
        top_decile_lift=10 * whole["top_decile_share"],
        power=power,
        deviance=float(measure.unit_deviances.mean()) if measure.unit_deviances is not None else None,
        deviance_explained=_known(whole["deviance_explained"]),
        lift_curve=lift_curve(outcomes, predictions),
        intervals=_intervals(measure, num, user_codes_N, num_resamples, seed),
        num_resamples=num_resamples,
        reason=None if has_deviance else "outcomes below 0 have no deviance",
    )


class _Measures:
    """The numbers of _RESAMPLED as a function of how often each row counts."""

    def __init__(self, outcomes_N: NDArray[np.float64], predictions_N: NDArray[np.float64], power: float) -> None:
        self.outcomes, self.predictions, self.power = outcomes_N, predictions_N, power
        self.by_prediction, self.by_outcome = RankedRows(predictions_N), RankedRows(outcomes_N)
        has_deviance = outcomes_N.min() >= 0
        self.unit_deviances = unit_deviances(outcomes_N, predictions_N, power) if has_deviance else None
        # The part of a constant's deviance that no constant changes; the rest follows from the mean alone.
        self.own_terms = _own_terms(outcomes_N, power) if has_deviance else None

    def __call__(self, weights_N: NDArray[np.float64]) -> NDArray[np.float64]:
        """Rows are in their first order."""
        values_N = weights_N * self.outcomes
        total, num = values_N.sum(), weights_N.sum()
        if not total > 0:
            return np.full(len(_RESAMPLED), np.nan)
        rows, best = self.by_prediction, self.by_outcome
        values_L, weights_L = (rows.by_level(part[rows.order]) for part in (values_N, weights_N))
        best_gini = gini(*(best.by_level(part[best.order]) for part in (values_N, weights_N)))
        explained = np.nan
        if self.unit_deviances is not None and self.own_terms is not None:
            constant = float(weights_N @ self.own_terms) - num * _mean_term(total / num, self.power)
            explained = 1 - weights_N @ self.unit_deviances / constant if constant > 1e-12 * num else np.nan
        return np.array(
            [
                weights_N @ self.predictions / total,
                gini(values_L, weights_L) / best_gini if best_gini > 0 else np.nan,
                top_share(values_L, weights_L, 0.1),
                explained,
            ]
        )


def unit_deviances(
    outcomes_N: NDArray[np.float64], predictions_N: NDArray[np.float64], power: float
) -> NDArray[np.float64]:
    """Tweedie's deviance of each row; outcomes >= 0, power in [1, 2)."""
    means = np.maximum(predictions_N, 1e-6 * max(float(predictions_N.mean()), 1e-12))
    if power == 1:
        poisson: NDArray[np.float64] = 2 * (xlogy(outcomes_N, outcomes_N / means) - outcomes_N + means)
        return poisson
    slope = outcomes_N * means ** (1 - power) / (1 - power)
    tweedie: NDArray[np.float64] = _own_terms(outcomes_N, power) + 2 * (means ** (2 - power) / (2 - power) - slope)
    return tweedie


def _own_terms(outcomes_N: NDArray[np.float64], power: float) -> NDArray[np.float64]:
    """What a row adds to the deviance whatever is predicted."""
    terms = xlogy(outcomes_N, outcomes_N) if power == 1 else outcomes_N ** (2 - power) / ((1 - power) * (2 - power))
    return np.asarray(2 * terms, dtype=np.float64)


def _mean_term(mean: float, power: float) -> float:
    """What predicting the mean takes off the sum of the rows' own terms, a row."""
    if power == 1:
        return float(2 * xlogy(mean, mean))
    return float(2 * mean ** (2 - power) / ((1 - power) * (2 - power)))


def _intervals(
    measure: _Measures, num_rows: int, user_codes_N: NDArray[np.int64] | None, num_resamples: int, seed: int
) -> dict[str, Interval]:
    if num_resamples == 0:
        return {}
    values_RS = resample(measure, num_rows, user_codes_N, num_resamples=num_resamples, seed=seed)
    found = {name: percentile_interval(values_RS[:, place]) for place, name in enumerate(_RESAMPLED)}
    return {name: interval for name, interval in found.items() if interval is not None}


def _spearman(outcomes_N: NDArray[np.float64], predictions_N: NDArray[np.float64]) -> float | None:
    ranks, others = rankdata(outcomes_N), rankdata(predictions_N)
    if np.ptp(ranks) == 0 or np.ptp(others) == 0:
        return None
    return float(np.corrcoef(ranks, others)[0, 1])


def _known(value: float) -> float | None:
    return value if np.isfinite(value) else None


def _checked(
    outcomes_N: NDArray[Any], predictions_N: NDArray[Any], power: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    outcomes, predictions = (np.asarray(values, dtype=np.float64) for values in (outcomes_N, predictions_N))
    if outcomes.shape != predictions.shape or outcomes.ndim != 1:
        raise ValueError(f"outcomes {outcomes.shape} and predictions {predictions.shape}, expected one of each per row")
    if not (np.isfinite(outcomes).all() and np.isfinite(predictions).all() and (predictions >= 0).all()):
        raise ValueError("predictions below 0, or values that are not finite")
    if not 1 <= power < 2:
        raise ValueError(f"power {power}, expected 1 (Poisson) or between 1 and 2 (Tweedie)")
    return outcomes, predictions
