"""How sure is a number? Bootstrap over users: draw as many users as there are, with replacement, and measure again.

Shapes: N rows, U users, R resamples, S statistics.
A user's rows are drawn together (cluster bootstrap): rows of one user at several cutoffs say less than as many users.
Resamples are weights, never copies of rows: a statistic is a function of how often each row counts.
Source: Efron and Tibshirani, An Introduction to the Bootstrap (1993), percentile intervals; Field and Welsh (2007) for
clusters; Wilson (1927) for a share, with the design effect of Korn and Graubard (1998) where users repeat.
Limits: intervals speak of other users of the same time, not of other times. Below some 30 users of each outcome, and
for sums of a few huge values, they are too narrow.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

Interval = tuple[float, float]

NUM_RESAMPLES = 200
CONFIDENCE = 0.95


def resampled_weights(
    num_rows: int, user_codes_N: NDArray[np.int64] | None, *, num_resamples: int = NUM_RESAMPLES, seed: int = 0
) -> Iterator[NDArray[np.float64]]:
    """How often each row counts in each resample [N]; `user_codes` (0 … U - 1) None means a user per row."""
    rng = np.random.default_rng(seed)
    num_users = num_rows if user_codes_N is None else int(user_codes_N.max(initial=-1)) + 1
    for _ in range(num_resamples):
        counts = np.bincount(rng.integers(num_users, size=num_users), minlength=num_users).astype(np.float64)
        yield counts if user_codes_N is None else counts[user_codes_N]


def resample(
    statistics: Callable[[NDArray[np.float64]], NDArray[np.float64]],
    num_rows: int,
    user_codes_N: NDArray[np.int64] | None,
    *,
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
) -> NDArray[np.float64]:
    """The statistics [S] of each resample -> [R, S]; NaN where a resample cannot be measured."""
    weights = resampled_weights(num_rows, user_codes_N, num_resamples=num_resamples, seed=seed)
    return np.array([statistics(weights_N) for weights_N in weights], dtype=np.float64)


def percentile_interval(values_R: NDArray[np.float64], confidence: float = CONFIDENCE) -> Interval | None:
    """The middle `confidence` of the resamples; None when more than a tenth of them could not be measured."""
    finite = values_R[np.isfinite(values_R)]
    if len(finite) == 0 or len(finite) < 0.9 * len(values_R):
        return None
    low, high = np.quantile(finite, [(1 - confidence) / 2, (1 + confidence) / 2]).tolist()
    return low, high


def share_interval(
    labels_N: NDArray[Any], user_codes_N: NDArray[np.int64] | None = None, confidence: float = CONFIDENCE
) -> Interval:
    """Wilson's interval of a share of 0/1 labels; rows of one user count as fewer rows the more they agree.

    At least one row. With unequal chances behind the labels it is a little too wide, never too narrow.
    """
    labels = np.asarray(labels_N, dtype=np.float64)
    num, share = len(labels), float(labels.mean())
    num_eff = num / max(1.0, _design_effect(labels, user_codes_N))
    z2 = float(ndtri((1 + confidence) / 2)) ** 2
    middle = (share + z2 / (2 * num_eff)) / (1 + z2 / num_eff)
    half = (z2 * (share * (1 - share) / num_eff + z2 / (4 * num_eff**2))) ** 0.5 / (1 + z2 / num_eff)
    return max(0.0, middle - half), min(1.0, middle + half)


def _design_effect(labels_N: NDArray[np.float64], user_codes_N: NDArray[np.int64] | None) -> float:
    """Variance of the mean when users are drawn, over that of as many independent rows (linearised)."""
    share = labels_N.mean()
    if user_codes_N is None or share in (0.0, 1.0):
        return 1.0
    totals_U = np.bincount(user_codes_N, weights=labels_N - share)
    return float(np.sum(totals_U**2) / (len(labels_N) * share * (1 - share)))
