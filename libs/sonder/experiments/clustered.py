"""How sure is a mean or a ratio of sums when the rows of one user depend on one another?

Shapes: N rows, U users, R resamples.
An estimate is sum(numerator) / sum(denominator) over the rows. Its linearised rows are
(numerator - estimate * denominator) / mean(denominator); rows of a user are added up before they are squared.
Source: the delta method with clusters (Deng, Knoblich & Lu, Applying the Delta Method in Metric Analytics, KDD 2018);
bootstrap of clusters by percentiles (Efron & Tibshirani, 1993; Field & Welsh, 2007).
Limits: both intervals are too narrow with few users, and when a few rows hold most of a sum: percentiles of a skewed
mean err to the side of the long tail.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

__all__ = ["Interval", "RatioEstimate", "estimate_ratio"]

Floats = NDArray[np.float64]
Interval = tuple[float, float]

NUM_RESAMPLES = 1000
_CELLS_AT_ONCE = 2_000_000  # of drawn counts, resamples x users: 16 MB


@dataclass(frozen=True)
class RatioEstimate:
    """A ratio of sums with its error. One user only: the error is NaN, for nothing can be said."""

    value: float
    standard_error: float
    interval: Interval  # normal
    bootstrap_interval: Interval  # percentiles over resampled users


def estimate_ratio(
    numerators_N: Floats,
    denominators_N: Floats,
    user_codes_N: NDArray[np.int64],
    *,
    confidence: float = 0.95,
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
) -> RatioEstimate:
    """sum(numerators) / sum(denominators); `user_codes` are 0 … U - 1, each of which occurs."""
    above_U: Floats = np.bincount(user_codes_N, weights=numerators_N).astype(np.float64)
    below_U: Floats = np.bincount(user_codes_N, weights=denominators_N).astype(np.float64)
    value, num_users = float(above_U.sum() / below_U.sum()), len(above_U)
    if num_users < 2:
        nothing = (float("nan"), float("nan"))
        return RatioEstimate(value, float("nan"), nothing, nothing)
    linear_U = (above_U - value * below_U) / below_U.mean()
    error = float(np.sqrt(np.sum(linear_U**2) / (num_users - 1) / num_users))
    half = float(ndtri((1 + confidence) / 2)) * error
    draws_R = _resampled(above_U, below_U, num_resamples, np.random.default_rng(seed))
    low, high = np.quantile(draws_R, [(1 - confidence) / 2, (1 + confidence) / 2]).tolist()
    return RatioEstimate(value, error, (value - half, value + half), (low, high))


def _resampled(above_U: Floats, below_U: Floats, num_resamples: int, rng: np.random.Generator) -> Floats:
    """The ratio with users drawn anew -> [R]; draws without any weight are left out."""
    num_users, sums = len(above_U), np.stack([above_U, below_U], axis=1)
    at_once = max(1, _CELLS_AT_ONCE // num_users)
    drawn = []
    for start in range(0, num_resamples, at_once):
        size = min(at_once, num_resamples - start)
        # Drawing users and counting them is several times faster than numpy's multinomial of many categories.
        users = rng.integers(num_users, size=(size, num_users)) + np.arange(size)[:, None] * num_users
        counts = np.bincount(users.ravel(), minlength=size * num_users).reshape(size, num_users)
        drawn.append(counts @ sums)
    pairs = np.concatenate(drawn)
    pairs = pairs[pairs[:, 1] != 0]
    return np.asarray(pairs[:, 0] / pairs[:, 1], dtype=np.float64)
