"""Calibration error: how far a prediction lies from what came true, and how far it would lie by chance alone.

Shapes: N rows, B bins, R draws.
ece             mean |predicted - observed| over bins of about equally many rows, weighted by rows
ece by chance   the same of labels drawn from the predictions themselves, so of a perfectly calibrated score: above 0,
                the more the fewer rows. An ece is worth a word only above what chance reaches.
Source: Guo et al. (2017) for ECE, with equal-mass bins (Nixon et al. 2019); Broecker and Smith (2007), Vaicenavicius et
al. (2019) for consistency resampling.
Limits: chance draws rows independently: where one user has several rows, chance reaches higher than said here. ECE
sees no error that averages out inside a bin.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

from sonder.evaluation.resampling import CONFIDENCE, Interval

NUM_BINS = 15
NUM_DRAWS = 200


def equal_mass_bins(predictions_N: NDArray[np.float64], num_bins: int = NUM_BINS) -> NDArray[np.int64]:
    """Bin of each row, by rising prediction, none empty; edges are quantiles and equal predictions never parted."""
    inner = np.quantile(predictions_N, np.arange(1, num_bins) / num_bins, method="inverted_cdf")
    bins = np.searchsorted(np.unique(inner), predictions_N, side="left")  # a bin ends with its upper edge
    is_used = np.bincount(bins) > 0
    places: NDArray[np.int64] = (np.cumsum(is_used) - 1)[bins]
    return places


def calibration_error(outcomes_N: NDArray[Any], predictions_N: NDArray[np.float64], bins_N: NDArray[np.int64]) -> float:
    """ECE in the unit of the predictions; at least one row."""
    return float(np.abs(np.bincount(bins_N, weights=predictions_N - outcomes_N)).sum() / len(bins_N))


def errors_by_chance(
    probabilities_N: NDArray[np.float64], bins_N: NDArray[np.int64], *, num_draws: int = NUM_DRAWS, seed: int = 0
) -> NDArray[np.float64]:
    """ECE of labels drawn from the probabilities themselves, for each draw [R]."""
    order = np.argsort(bins_N, kind="stable")
    starts = np.flatnonzero(np.diff(bins_N[order], prepend=-1))
    expected_B = np.add.reduceat(probabilities_N[order], starts)
    chances = probabilities_N[order].astype(np.float32)
    rng = np.random.default_rng(seed)
    errors = np.empty(num_draws)
    for draw in range(num_draws):
        came_true = rng.random(len(chances), dtype=np.float32) < chances
        errors[draw] = np.abs(np.add.reduceat(came_true, starts, dtype=np.int64) - expected_B).sum()
    return errors / len(chances)


def error_interval(
    ece: float, resampled_R: NDArray[np.float64], chance_R: NDArray[np.float64], confidence: float = CONFIDENCE
) -> Interval:
    """Interval of the true calibration error.

    A resample adds the noise of a sample once more, and the sample has added it already: the low end is taken from the
    estimate less that noise, the high end from the estimate as it is. It begins at 0 where a perfectly calibrated score
    would reach such an ECE by chance. In simulations of 500 and 3,000 rows it held in 89 to 98 of 100 cases.
    """
    reach = float(ndtri((1 + confidence) / 2)) * float(resampled_R.std())
    is_chance = ece <= float(np.quantile(chance_R, (1 + confidence) / 2))
    low = 0.0 if is_chance else max(0.0, 2 * ece - float(resampled_R.mean()) - reach)
    return low, ece + reach
