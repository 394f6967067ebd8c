"""How popular each item was at each time, from the events before that time alone.

Shapes: P points in time, I items, N events.
Popularity is a decayed count: an event weighs half after `half_life_us`. It enters every score as a learned multiple
of its logarithm, so the vectors need not spend width on what everybody wants this week. Where a log has no time, or
the protocol asks for each user's last item, there is one point and nothing decays.
The half-life is the one under which the events of each next window are most likely.
Limits: P x I float32 in memory; large catalogues get fewer points.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

MOST_POINTS, MOST_CELLS = 64, 1 << 25
_BLOCK_EVENTS = 1 << 24  # counted at once
HALF_LIVES_OF_WINDOW = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 16.0)
PSEUDO_COUNT = 0.5  # an item that nobody wanted lately is not impossible


@dataclass(frozen=True)
class Trend:
    """Log shares of the items at P ascending times; row p uses nothing from `starts_us[p]` on."""

    starts_us: NDArray[np.int64]  # [P]
    log_shares_PI: NDArray[np.float32]  # [P, I]
    newest_I: NDArray[np.float64]  # [I] decayed counts when the training data ends
    half_life_us: int  # 0: nothing decays

    def points_at(self, times_us: NDArray[np.int64]) -> NDArray[np.int64]:
        """The newest point that is not later than each time [N]; the first where none is."""
        points: NDArray[np.int64] = np.searchsorted(self.starts_us, times_us, side="right") - 1
        return np.maximum(points, 0)


def constant_trend(counts_I: NDArray[np.int64]) -> Trend:
    """One point that holds for all times."""
    counts = counts_I.astype(np.float64)
    return Trend(np.zeros(1, dtype=np.int64), log_shares(counts)[None, :], counts, half_life_us=0)


def fit_trend(
    items_N: NDArray[np.int32],
    times_us_N: NDArray[np.int64],
    num_items: int,
    *,
    start_us: int,
    end_us: int,
    window_us: int,
    add_up: Callable[[NDArray[np.int64]], NDArray[np.int64]],
) -> Trend:
    """Trend of the wanted events of [start, end). `add_up` sums counts over the workers, all with the same range."""
    num_points = int(np.clip(MOST_CELLS // max(num_items, 1), 1, MOST_POINTS))
    width_us = max(-(-(end_us - start_us) // num_points), 1)
    cells = np.zeros(num_points * num_items, dtype=np.int64)
    for start in range(0, len(items_N), _BLOCK_EVENTS):
        part = slice(start, start + _BLOCK_EVENTS)
        points = np.clip((times_us_N[part] - start_us) // width_us, 0, num_points - 1)
        cells += np.bincount(points * num_items + items_N[part], minlength=len(cells))
    counts_PI = add_up(cells).reshape(num_points, num_items)
    half_lives = [max(int(share * window_us), 1) for share in HALF_LIVES_OF_WINDOW]
    ahead = max(round(window_us / width_us), 1)
    likelihoods = [_likelihood(counts_PI, 0.5 ** (width_us / half_life), ahead) for half_life in half_lives]
    half_life_us = half_lives[int(np.argmax(likelihoods))]
    *before, newest_I = _decayed(counts_PI, 0.5 ** (width_us / half_life_us))
    shares_PI = np.stack([log_shares(decayed_I) for decayed_I in before])
    starts_us = start_us + width_us * np.arange(num_points, dtype=np.int64)
    return Trend(starts_us, shares_PI, newest_I, half_life_us)


def log_shares(counts_I: NDArray[np.float64]) -> NDArray[np.float32]:
    """Logarithm of each item's share of smoothed counts."""
    smoothed = counts_I + PSEUDO_COUNT
    shares: NDArray[np.float32] = np.log(smoothed / smoothed.sum()).astype(np.float32)
    return shares


def _decayed(counts_PI: NDArray[np.int64], keep: float) -> list[NDArray[np.float64]]:
    """Decayed counts before each point, and after the last one [P + 1 of I]; an event counts from its middle on."""
    decayed = [np.zeros(counts_PI.shape[1])]
    for counts_I in counts_PI:
        decayed.append(decayed[-1] * keep + counts_I * keep**0.5)
    return decayed


def _likelihood(counts_PI: NDArray[np.int64], keep: float, ahead: int) -> float:
    """Mean log likelihood of the wanted events of the `ahead` points that follow each point."""
    total, events = 0.0, 0
    for point, decayed_I in enumerate(_decayed(counts_PI, keep)[1:-1], start=1):
        future_I = counts_PI[point : point + ahead].sum(axis=0)
        total += float(future_I @ log_shares(decayed_I))
        events += int(future_I.sum())
    return total / max(events, 1)


def decayed_counts(
    items_N: NDArray[np.int32], times_us_N: NDArray[np.int64], num_items: int, *, as_of_us: int, half_life_us: int
) -> NDArray[np.float64]:
    """What each item's events of known items are worth at `as_of_us`, those from then on nothing -> [I]."""
    is_past = times_us_N < as_of_us
    ages = (as_of_us - times_us_N[is_past]).astype(np.float64)
    worth = 0.5 ** (ages / half_life_us) if half_life_us else np.ones(len(ages))
    counts: NDArray[np.float64] = np.bincount(items_N[is_past], worth, minlength=num_items).astype(np.float64)
    return counts
