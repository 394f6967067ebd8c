"""The same users asked twice: what a number of theirs is in two models, and how sure the difference is.

Interval: Student's t on the users' own differences, which is what pairing buys: users differ far more from one another
than the two models do on one user. Of several slices each interval is as wide as all of them together ask for
(Bonferroni), so that one slice in twenty is not at risk by chance.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

LEAST_USERS = 30  # of a slice: below it a t interval promises too much of such skewed numbers


@dataclass(frozen=True)
class PairedDifference:
    """Means over the users who have the number in both, `difference` = now - was, in the number's own unit."""

    name: str
    users: int
    was: float
    now: float
    difference: float
    low: float
    high: float
    alpha: float  # the interval holds the true difference in 1 - alpha of such comparisons

    @property
    def relative(self) -> float | None:
        return self.difference / abs(self.was) if self.was else None

    @property
    def judgement(self) -> str:
        """`better`, `worse` or `even` of a number that is better when higher: by the interval alone."""
        return "better" if self.low > 0 else "worse" if self.high < 0 else "even"

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"relative": self.relative, "judgement": self.judgement}


def paired_difference(
    name: str, was_U: NDArray[np.float64], now_U: NDArray[np.float64], *, alpha: float = 0.05
) -> PairedDifference | None:
    """Of users for whom both are finite; None where fewer than LEAST_USERS are left."""
    both = np.isfinite(was_U) & np.isfinite(now_U)
    num = int(both.sum())
    if num < LEAST_USERS:
        return None
    was, now = float(was_U[both].mean()), float(now_U[both].mean())
    differences = now_U[both] - was_U[both]
    mean, error = float(differences.mean()), float(differences.std(ddof=1) / np.sqrt(num))
    reach = error * float(stats.t.ppf(1 - alpha / 2, num - 1))
    return PairedDifference(name, num, was, now, mean, mean - reach, mean + reach, alpha)


def paired_slices(
    was_U: NDArray[np.float64],
    now_U: NDArray[np.float64],
    codes_U: NDArray[np.integer],
    labels: Sequence[str],
    *,
    alpha: float = 0.05,
) -> list[PairedDifference]:
    """One difference a label, each at alpha over the number of slices that have enough users."""
    both = np.isfinite(was_U) & np.isfinite(now_U)
    large = [code for code in range(len(labels)) if int((both & (codes_U == code)).sum()) >= LEAST_USERS]
    found = []
    for code in large:
        chosen = codes_U == code
        difference = paired_difference(labels[code], was_U[chosen], now_U[chosen], alpha=alpha / len(large))
        assert difference is not None, "large enough"
        found.append(difference)
    return found
