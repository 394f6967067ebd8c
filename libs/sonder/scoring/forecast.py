"""What a choice of users will bring, with its interval, and what it would have brought on a held-out window.

Shapes: U users of the choice, T users of a test window, B bootstrap draws. Intervals are 95 %.
Outcomes of calibrated users are independent coins of different bias, so their number is Poisson-binomial: exact by
convolution up to EXACT_USERS, beyond by the normal with Cornish and Fisher's correction for skew. That is luck alone.
A test window adds what the score itself gets wrong: its users are drawn again, and each draw's ratio of what came true
to what was promised, among users as high in the order, scales the promise. Where the score is off, so is the interval.
Source: Hong, On computing the distribution function for the Poisson binomial distribution, CSDA 59 (2013).
Limits: the ratio is that of all users of the test window, whatever audience the choice was limited to; a world that
changes after the window is in neither interval. Ratios and draws use a seed, so a repeated run says the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

from sonder.scoring.decisions import Payoff

EXACT_USERS = 2_000
NUM_DRAWS = 1_000
_TAILS = (0.025, 0.975)

Floats = NDArray[np.float64]
Interval = tuple[float, float]
Kind = Literal["probability", "amount", "uplift"]  # of a score: in [0, 1], at least 0, any number


@dataclass(frozen=True)
class TestWindow:
    """What the score said of a held-out window, and what came true."""

    __test__ = False  # no test, whatever pytest thinks of the name

    scores: Floats  # [T]
    labels: Floats  # [T] 0 or 1, or an amount, or for an uplift a transformed outcome: its mean is the effect
    cutoff: str  # ISO 8601, the begin of the window


@dataclass(frozen=True)
class Realised:
    """The policy on the held-out window: the same share of its users, chosen by the score as it was then."""

    cutoff: str
    num_users: int
    num_chosen: int
    promised: float  # gain that the scores said
    gain: float  # gain as it came true
    gain_interval: Interval
    random: float  # of as many random users, on average
    perfect: float | None  # of as many users in the order of what came true; None for an uplift, which is never seen


def num_interval(probabilities_U: Floats) -> Interval:
    """95 % interval of how many of independent events come true (Poisson-binomial)."""
    if not len(probabilities_U):
        return 0.0, 0.0
    if len(probabilities_U) <= EXACT_USERS:
        cumulative = np.cumsum(poisson_binomial(probabilities_U))
        low, high = (int(np.searchsorted(cumulative, tail)) for tail in _TAILS)
        return float(low), float(min(high, len(probabilities_U)))
    spread = probabilities_U * (1 - probabilities_U)
    deviation = float(np.sqrt(spread.sum()))
    if deviation == 0:
        return float(probabilities_U.sum()), float(probabilities_U.sum())
    skew = float((spread * (1 - 2 * probabilities_U)).sum()) / deviation**3
    quantiles = norm.ppf(_TAILS)
    corrected = probabilities_U.sum() + deviation * (quantiles + skew * (quantiles**2 - 1) / 6)
    low, high = np.clip(np.round(corrected), 0, len(probabilities_U))
    return float(low), float(high)


def poisson_binomial(probabilities_U: Floats) -> Floats:
    """Probability of each number of events that come true [U + 1]; U^2 additions."""
    masses = np.zeros(len(probabilities_U) + 1)
    masses[0] = 1.0
    for done, probability in enumerate(probabilities_U, start=1):
        masses[1 : done + 1] = masses[1 : done + 1] * (1 - probability) + masses[:done] * probability
        masses[0] *= 1 - probability
    return masses


def sum_interval(scores_U: Floats, window: TestWindow | None, *, share: float, kind: Kind, seed: int) -> Interval:
    """95 % interval of the sum of outcomes of chosen users; (nan, nan) where nothing tells how far they vary."""
    if not len(scores_U):
        return 0.0, 0.0
    rows = np.zeros(0, dtype=np.int64) if window is None else top_rows(window.scores, round(share * len(window.scores)))
    if window is None or window.scores[rows].sum() <= 0:
        return num_interval(scores_U) if kind == "probability" else (float("nan"), float("nan"))
    scores, labels, total = window.scores[rows], window.labels[rows], scores_U.sum()
    draw = np.random.default_rng(seed)
    means, deviations = np.empty(NUM_DRAWS), np.empty(NUM_DRAWS)
    for number in range(NUM_DRAWS):
        drawn = draw.integers(0, len(rows), len(rows))
        promised = scores[drawn].sum()
        ratio = labels[drawn].sum() / promised if promised > 0 else 1.0
        means[number] = ratio * total
        if kind == "probability":
            likely = np.clip(ratio * scores_U, 0, 1)
            deviations[number] = np.sqrt((likely * (1 - likely)).sum())
        elif kind == "amount":
            deviations[number] = np.sqrt(len(scores_U)) * (labels[drawn] - ratio * scores[drawn]).std()
        else:  # the average effect is uncertain; no user's own effect is ever seen
            deviations[number] = 0.0
    sums = means + deviations * draw.standard_normal(NUM_DRAWS)
    lowest, highest = {"probability": (0, len(scores_U)), "amount": (0, None), "uplift": (None, None)}[kind]
    low, high = np.quantile(sums if kind == "uplift" else np.clip(sums, lowest, highest), _TAILS)
    return float(low), float(high)


def gain_interval(payoff: Payoff, num_users: int, sums: Interval) -> Interval:
    """The interval of the gain of users whose outcomes sum up to somewhere in an interval."""
    ends = [payoff.per_unit * end + payoff.fixed * num_users for end in sums]
    return min(ends), max(ends)


def realised(window: TestWindow, payoff: Payoff, *, share: float, kind: Kind, seed: int) -> Realised:
    """The policy at a share of the window's users, beside random users and the perfect order."""
    num_users = len(window.scores)
    promised, came_true = (payoff.per_unit * part + payoff.fixed for part in (window.scores, window.labels))
    chosen = top_rows(promised, round(share * num_users))
    chosen = chosen[promised[chosen] > 0]
    best = top_rows(came_true, len(chosen))
    draws = np.random.default_rng(seed).integers(0, max(len(chosen), 1), (NUM_DRAWS, len(chosen)))
    low, high = np.quantile(came_true[chosen][draws].sum(axis=1), _TAILS) if len(chosen) else (0.0, 0.0)
    return Realised(
        cutoff=window.cutoff,
        num_users=num_users,
        num_chosen=len(chosen),
        promised=float(promised[chosen].sum()),
        gain=float(came_true[chosen].sum()),
        gain_interval=(float(low), float(high)),
        random=float(len(chosen) * came_true.mean()) if num_users else 0.0,
        perfect=None if kind == "uplift" else float(came_true[best].sum()),
    )


def top_rows(values_T: NDArray[np.floating[Any]], num: int) -> NDArray[np.int64]:
    """Rows of the `num` greatest values, greatest first; of equals the earlier row."""
    return np.argsort(-values_T, kind="stable")[:num]
