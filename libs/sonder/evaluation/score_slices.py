"""For whom is a score calibrated? Predicted against observed by slice: lifecycle state, tenure, level of the score.

Shapes: N rows, S slices.
Each slice has the interval of what was observed and says whether the prediction lies inside. One in twenty of a
perfectly calibrated score lies outside, so `outside_by_chance` goes with every count of those outside.
Intervals: of a share, Wilson's (sonder.evaluation.resampling); of a mean, the bootstrap over users.
Limits: slices below LEAST_USERS users, and means below LEAST_OUTCOMES users with any, are shown but not judged.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sonder.evaluation.calibration_error import calibration_error, equal_mass_bins, errors_by_chance
from sonder.evaluation.resampling import CONFIDENCE, NUM_RESAMPLES, percentile_interval, resample, share_interval

LEAST_USERS = 50
LEAST_OUTCOMES = 10
NUM_TENURES = 4
NUM_TENTHS = 10


@dataclass(frozen=True)
class ScoreSlice:
    """One slice; `is_inside` None: too few to judge."""

    name: str
    users: int
    positives: int  # rows with an outcome above 0
    predicted: float  # mean
    observed: float  # mean
    observed_low: float
    observed_high: float
    is_inside: bool | None
    ece: float | None  # of probabilities alone
    ece_by_chance: float | None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class ScoreRows:
    """Outcomes and predictions side by side, and whose they are.

    `user_codes` number the users from 0. `is_share`: predictions are probabilities of 0/1 outcomes, not means.
    """

    outcomes_N: NDArray[np.float64]
    predictions_N: NDArray[np.float64]
    user_codes_N: NDArray[np.int64]
    is_share: bool

    def take(self, rows: NDArray[Any]) -> ScoreRows:
        """Some rows, their users numbered anew."""
        _, codes = np.unique(self.user_codes_N[rows], return_inverse=True)
        return ScoreRows(self.outcomes_N[rows], self.predictions_N[rows], codes, self.is_share)

    @property
    def num_users(self) -> int:
        return int(self.user_codes_N.max(initial=-1)) + 1


def slices_by(
    rows: ScoreRows,
    names_N: Sequence[str] | NDArray[Any],
    *,
    order: Sequence[str] | None = None,
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
) -> list[ScoreSlice]:
    """One slice for each name that occurs; in `order`, or by name."""
    found, codes = np.unique(np.asarray(names_N, dtype=str), return_inverse=True)
    names: list[str] = found.tolist()
    place = {name: at for at, name in enumerate(order or ())}
    ranked = sorted(range(len(names)), key=lambda code: (place.get(names[code], len(place)), names[code]))
    return [_slice(names[code], rows.take(np.flatnonzero(codes == code)), num_resamples, seed) for code in ranked]


def slices_by_tenure(rows: ScoreRows, tenure_days_N: NDArray[Any], **resampling: int) -> list[ScoreSlice]:
    """Four classes of about equally many rows, cut at the quartiles of these rows' own tenure in whole days."""
    days = np.floor(np.asarray(tenure_days_N, dtype=np.float64))
    edges = np.unique(np.floor(np.quantile(days, np.arange(1, NUM_TENURES) / NUM_TENURES, method="higher")))
    edges = edges[edges > days.min()]  # a first class that holds nobody is none
    names = tenure_names(edges)
    places = np.searchsorted(edges, days, side="right")
    return slices_by(rows, np.array(names)[places], order=names, **resampling)


def tenure_names(edges: Sequence[float] | NDArray[np.float64]) -> list[str]:
    """What the classes below, between and above the edges are called."""
    if len(edges) == 0:
        return ["all"]
    whole = [int(edge) for edge in edges]
    between = [f"{low} days" if high == low + 1 else f"{low} to {high - 1} days" for low, high in pairwise(whole)]
    return [f"under {whole[0]} days", *between, f"{whole[-1]} days and more"]


def slices_by_score(rows: ScoreRows, **resampling: int) -> list[ScoreSlice]:
    """About ten levels of equally many rows, lowest first; equal predictions are never parted."""
    bins = equal_mass_bins(rows.predictions_N, NUM_TENTHS)
    names = [f"level {level + 1} of {bins.max() + 1}" for level in range(int(bins.max()) + 1)]
    return slices_by(rows, np.array(names)[bins], order=names, **resampling)


def outside_counts(slices: Sequence[ScoreSlice]) -> dict[str, float]:
    """How many slices were judged, how many lie outside, and how many would by chance."""
    judged = [entry for entry in slices if entry.is_inside is not None]
    return {
        "judged": len(judged),
        "outside": sum(not entry.is_inside for entry in judged),
        "outside_by_chance": round((1 - CONFIDENCE) * len(judged), 2),
    }


def _slice(name: str, rows: ScoreRows, num_resamples: int, seed: int) -> ScoreSlice:
    predicted, observed = float(rows.predictions_N.mean()), float(rows.outcomes_N.mean())
    positives = int(np.count_nonzero(rows.outcomes_N > 0))
    if rows.is_share:
        low, high = share_interval(rows.outcomes_N, rows.user_codes_N)
        is_judged = rows.num_users >= LEAST_USERS
    else:
        low, high = mean_interval(rows, num_resamples=num_resamples, seed=seed)
        is_judged = rows.num_users >= LEAST_USERS and positives >= LEAST_OUTCOMES
    ece = by_chance = None
    if rows.is_share:
        bins = equal_mass_bins(rows.predictions_N)
        ece = calibration_error(rows.outcomes_N, rows.predictions_N, bins)
        if num_resamples:
            chance_R = errors_by_chance(rows.predictions_N, bins, num_draws=num_resamples, seed=seed)
            by_chance = float(chance_R.mean())
    return ScoreSlice(
        name=name,
        users=rows.num_users,
        positives=positives,
        predicted=predicted,
        observed=observed,
        observed_low=low,
        observed_high=high,
        is_inside=low <= predicted <= high if is_judged else None,
        ece=ece,
        ece_by_chance=by_chance,
    )


def mean_interval(rows: ScoreRows, *, num_resamples: int = NUM_RESAMPLES, seed: int = 0) -> tuple[float, float]:
    """Bootstrap interval of the mean outcome; the mean itself, twice, where nothing is resampled."""
    outcomes = rows.outcomes_N
    if num_resamples == 0:
        return float(outcomes.mean()), float(outcomes.mean())

    def mean(weights_N: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.array([weights_N @ outcomes / weights_N.sum()])

    values_RS = resample(mean, len(outcomes), rows.user_codes_N, num_resamples=num_resamples, seed=seed)
    interval = percentile_interval(values_RS[:, 0])
    assert interval is not None  # a mean of at least one row is always finite
    return interval
