"""How well an order of users finds those whom acting changes: Qini curve and coefficient, uplift curve, average effect.

Shapes: N users of a randomised experiment, P points of a curve (users with equal predictions are one step), B draws.
With the users taken from the highest predicted uplift down, at a share of them with R_t, R_c the outcomes and N_t, N_c
the numbers of treated and of controls among them:
Qini curve    (R_t - R_c * N_t / N_c) / N_t(all): outcomes that treating this share brought, per treated user of all;
              its end is the average effect
coefficient   area between that curve and the straight line to its end, which is what a random order gives. In the
              unit of the outcome; 0 is random, below it worse. `of_best` divides it by the area of the best order of
              these very outcomes (binary ones alone), as the normalised coefficient of the literature does
uplift curve  (R_t / N_t - R_c / N_c) * share; AUUC is the area under it, half the average effect when random
Intervals are 95 %, from B resamplings of users; what is compared is compared on the same resamplings.
Source: Radcliffe, Using control groups to target on predicted lift, Direct Marketing Analytics Journal (2007).
Limits: where no control has been seen yet, the curve counts the treated alone; with few controls its begin is noise.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

Floats = NDArray[np.float64]
Interval = tuple[float, float]
NUM_DRAWS = 400
_TAILS = (0.025, 0.975)


@dataclass(frozen=True)
class Experiment:
    """What became of the users of a randomised treatment."""

    outcomes: Floats  # [N] 0 or 1, or an amount
    treated: NDArray[np.bool_]  # [N]

    def __post_init__(self) -> None:
        if len(self.outcomes) != len(self.treated) or self.treated.all() or not self.treated.any():
            raise ValueError(f"{len(self.outcomes)} outcomes and {self.treated.sum()} treated: both arms are needed")

    @property
    def is_binary(self) -> bool:
        return bool(np.isin(self.outcomes, (0.0, 1.0)).all())

    def take(self, rows: NDArray[np.int64]) -> Experiment:
        return Experiment(self.outcomes[rows], self.treated[rows])


@dataclass(frozen=True)
class Curve:
    """Points of a curve, from (0, 0) on."""

    shares: Floats  # [P] of the users
    gains: Floats  # [P]

    @property
    def area(self) -> float:
        return float(np.trapezoid(self.gains, self.shares))

    @property
    def area_over_random(self) -> float:
        return self.area - float(self.gains[-1]) / 2


@dataclass(frozen=True)
class _Steps:
    """An order of an experiment, ready to be counted with any weights."""

    experiment: Experiment
    order: NDArray[np.int64]  # [N] highest prediction first
    ends: NDArray[np.int64]  # [P - 1] last place of each step

    @classmethod
    def of(cls, experiment: Experiment, uplift_N: Floats) -> _Steps:
        order = np.argsort(-uplift_N, kind="stable")
        ends = np.append(np.flatnonzero(np.diff(uplift_N[order])), len(order) - 1)
        return cls(experiment, order, ends)

    def curves(self, weights_N: Floats | None = None) -> tuple[Curve, Curve]:
        """The Qini and the uplift curve of users that count as often as their weights say."""
        treated, outcomes = self.experiment.treated[self.order], self.experiment.outcomes[self.order]
        weights = np.ones(len(outcomes)) if weights_N is None else weights_N[self.order]
        in_arm = np.where(treated, weights, 0.0), np.where(treated, 0.0, weights)
        (num_t, sum_t), (num_c, sum_c) = (
            (np.cumsum(arm)[self.ends], np.cumsum(arm * outcomes)[self.ends]) for arm in in_arm
        )
        shares = (num_t + num_c) / (num_t[-1] + num_c[-1])
        qini = (sum_t - sum_c * _ratio(num_t, num_c)) / num_t[-1]
        uplift = (_ratio(sum_t, num_t) - _ratio(sum_c, num_c)) * shares
        return _from_zero(shares, qini), _from_zero(shares, uplift)


def qini_curve(experiment: Experiment, uplift_N: Floats) -> Curve:
    """Outcomes that treating the best share brought, per treated user."""
    return _Steps.of(experiment, uplift_N).curves()[0]


def qini_coefficient(experiment: Experiment, uplift_N: Floats) -> float:
    """Area between the Qini curve and that of a random order."""
    return qini_curve(experiment, uplift_N).area_over_random


def share_of_best(experiment: Experiment, uplift_N: Floats) -> float | None:
    """The coefficient over that of the best order of these outcomes; None for amounts."""
    if not experiment.is_binary:
        return None
    sign = np.where(experiment.treated, 1.0, -1.0)
    best = qini_coefficient(experiment, experiment.outcomes * sign)  # treated who did first, controls who did last
    return qini_coefficient(experiment, uplift_N) / best if best > 0 else None


def area_under_uplift(experiment: Experiment, uplift_N: Floats) -> float:
    """AUUC: area under the uplift curve."""
    return _Steps.of(experiment, uplift_N).curves()[1].area


def average_effect(experiment: Experiment) -> tuple[float, Interval]:
    """Difference of the arms' mean outcomes with its interval (normal, variances of both arms)."""
    arms = [experiment.outcomes[experiment.treated], experiment.outcomes[~experiment.treated]]
    effect = float(arms[0].mean() - arms[1].mean())
    error = float(np.sqrt(sum(arm.var(ddof=min(1, len(arm) - 1)) / len(arm) for arm in arms)))
    half = float(norm.ppf(_TAILS[1])) * error
    return effect, (effect - half, effect + half)


def resampled_coefficients(
    experiment: Experiment, uplifts: Mapping[str, Floats], *, seed: int, num_draws: int = NUM_DRAWS
) -> dict[str, Floats]:
    """Qini coefficients of several orders over the same resamplings of the users -> [B] each."""
    draw = np.random.default_rng(seed)
    steps = {name: _Steps.of(experiment, uplift) for name, uplift in uplifts.items()}
    drawn: dict[str, Floats] = {name: np.empty(num_draws) for name in uplifts}
    num_users = len(experiment.outcomes)
    for number in range(num_draws):
        weights = _redraw(draw, experiment.treated, num_users)
        for name, order in steps.items():
            drawn[name][number] = order.curves(weights)[0].area_over_random
    return drawn


def interval_of(draws_B: Floats) -> Interval:
    """95 % of the draws."""
    low, high = np.quantile(draws_B, _TAILS)
    return float(low), float(high)


def _redraw(draw: np.random.Generator, treated_N: NDArray[np.bool_], num_users: int) -> Floats:
    """How often each user is drawn; each arm keeps its size, so neither is ever empty."""
    weights = np.zeros(num_users)
    for arm in (np.flatnonzero(treated_N), np.flatnonzero(~treated_N)):
        weights[arm] = np.bincount(draw.integers(0, len(arm), len(arm)), minlength=len(arm))
    return weights


def _ratio(above: Floats, below: Floats) -> Floats:
    """above / below, 0 where below is 0."""
    return np.divide(above, below, out=np.zeros_like(above), where=below > 0)


def _from_zero(shares: Floats, gains: Floats) -> Curve:
    return Curve(np.concatenate([[0.0], shares]), np.concatenate([[0.0], gains]))
