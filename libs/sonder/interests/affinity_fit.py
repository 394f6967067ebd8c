"""Fit what an affinity needs on the past: how fast evidence fades, what the population is worth, what a refusal costs.

Shapes: U users, P (user, category) pairs, C categories of a level, E events.
Evidence is every event before T - h, outcomes are the wanted actions of [T - h, T), where h is the horizon that a share
speaks of; nothing at T or later is read. Each user with both counts once, however many actions it has. The numbers
minimise the log loss of the users' next shares:
population_half_life_days   of the population's shares alone
half_life_days              one for all levels, with the best prior strength of each level
prior_strength, aversion    of each level, together, aversion 0.25 at least; it stays 1 where nothing was refused
The curve (isotonic, on the pairs that have events) is kept for a level only where it lowers the squared error on users
it was not fitted on. The population's shares are those of the moment T, each user counting up to once.
Limits: with fewer than 100 such users all numbers are the defaults below and `num_users` is 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from sklearn.isotonic import IsotonicRegression

from sonder.history.timelines import MICROSECONDS_PER_DAY, Timelines
from sonder.history.vocabulary import Vocabulary
from sonder.interests.affinity import EPSILON, AffinityModel, LevelModel, decay, raw_shares
from sonder.interests.taxonomy import Taxonomy

MIN_USERS = 100
DEFAULT_STRENGTH, DEFAULT_AVERSION = 5.0, 1.0
NUM_HALVINGS = 8  # half-lives that are tried: the log's length, a half of it, a quarter, …
STRENGTHS = tuple(float(strength) for strength in np.geomspace(0.5, 256, 10))
PRIOR_STRENGTHS = (0.01, 10_000.0)
AVERSIONS = (0.25, 100.0)  # a refusal never counts for nothing, whatever the log says
NUM_FOLDS = 5
MAX_CURVE_POINTS = 64


@dataclass(frozen=True)
class _Level:
    """One level's pairs of users that have evidence and outcomes; pairs with either are listed."""

    users: NDArray[np.int64]  # [P] 0 .. num_users
    categories: NDArray[np.int64]  # [P]
    outcomes: NDArray[np.float64]  # [P] share of the user's wanted actions in the window, sum 1 per user
    event_pairs: NDArray[np.int64]  # [E] of those before the window
    event_times_us: NDArray[np.int64]
    event_weights: NDArray[np.float64]  # signed
    num_users: int

    def wanted(self, decay_E: NDArray[np.float64]) -> NDArray[np.float64]:
        return self._sums(np.maximum(self.event_weights, 0) * decay_E)

    def unwanted(self, decay_E: NDArray[np.float64]) -> NDArray[np.float64]:
        return self._sums(np.maximum(-self.event_weights, 0) * decay_E)

    def _sums(self, weights_E: NDArray[np.float64]) -> NDArray[np.float64]:
        sums: NDArray[np.float64] = np.bincount(self.event_pairs, weights_E, minlength=len(self.users)).astype(float)
        return sums


@dataclass(frozen=True)
class _Decayed:
    """A level at one half-life: what `raw_shares` takes."""

    level: _Level
    wanted: NDArray[np.float64]
    unwanted: NDArray[np.float64]
    population: NDArray[np.float64]  # [P] of the pair's category

    def shares(self, prior_strength: float, aversion: float) -> NDArray[np.float64]:
        return raw_shares(
            self.level.users,
            self.wanted,
            self.unwanted,
            self.population,
            prior_strength=prior_strength,
            aversion=aversion,
        )

    def loss(self, prior_strength: float, aversion: float) -> float:
        """Log loss per user."""
        shares = np.maximum(self.shares(prior_strength, aversion), EPSILON)
        return float(-(self.level.outcomes @ np.log(shares)) / self.level.num_users)


def fit_affinity(
    timelines: Timelines, vocabulary: Vocabulary, taxonomy: Taxonomy, *, as_of_us: int, horizon_days: float
) -> AffinityModel:
    """Fit on a sample of users; a log that is shorter than four horizons has a horizon of a quarter of it."""
    history = timelines.before(as_of_us)
    span_days = max((as_of_us - int(history.times_us.min(initial=as_of_us))) / MICROSECONDS_PER_DAY, 1e-6)
    horizon_days = min(horizon_days, span_days / 4)
    start_us = as_of_us - round(horizon_days * MICROSECONDS_PER_DAY)
    past = history.before(start_us)
    window = history.between(start_us, as_of_us)
    grid = [span_days / 2**halving for halving in range(NUM_HALVINGS)]
    levels = [_level(past, window, vocabulary, codes_I) for codes_I in taxonomy.codes_LI]
    usable = [level for level in levels if level.num_users >= MIN_USERS]
    if not usable:
        middle = grid[len(grid) // 2 - 1]  # an eighth of the log, as for interests
        fitted = [(DEFAULT_STRENGTH, DEFAULT_AVERSION, _NO_CURVE)] * taxonomy.num_levels
        return _model(history, vocabulary, taxonomy, as_of_us, (middle, middle), horizon_days, fitted, 0)
    populations = {
        days: [population_shares(past, vocabulary, codes_I, as_of_us=start_us, half_life_days=days)
               for codes_I in taxonomy.codes_LI]
        for days in grid
    }  # fmt: skip
    population_days = min(grid, key=lambda days: _population_loss(levels, populations[days]))
    at_grid = {days: _decayed(levels, populations[population_days], start_us, days) for days in grid}
    half_life_days = min(grid, key=lambda days: sum(_best_strength(level)[0] for level in at_grid[days]))
    fitted = [_fit_level(level) for level in at_grid[half_life_days]]
    return _model(
        history,
        vocabulary,
        taxonomy,
        as_of_us,
        (half_life_days, population_days),
        horizon_days,
        fitted,
        max(level.num_users for level in usable),
    )


def population_shares(
    history: Timelines,
    vocabulary: Vocabulary,
    codes_I: NDArray[np.int32],
    *,
    as_of_us: int,
    half_life_days: float,
) -> NDArray[np.float64]:
    """Shares of all categories at a moment [C]: a user counts by its decayed wanted weight, up to once."""
    num_categories = int(codes_I.max(initial=0)) + 1
    users_E, codes_E, times_us, weights_E = _said(history, vocabulary, codes_I)
    weights_E = np.maximum(weights_E, 0.0) * decay(times_us, as_of_us=as_of_us, half_life_days=half_life_days)
    totals_U = np.bincount(users_E, weights_E, minlength=history.num_users)
    counts_C = np.bincount(codes_E, weights_E / (1.0 + totals_U[users_E]), minlength=num_categories)
    # One more user who likes all alike: a category that nobody has wanted yet may still be wanted next.
    shares: NDArray[np.float64] = (counts_C + 1.0 / num_categories) / (counts_C.sum() + 1.0)
    return shares


_NO_CURVE: tuple[tuple[float, ...], tuple[float, ...]] = ((), ())
_Fitted = tuple[float, float, tuple[tuple[float, ...], tuple[float, ...]]]


def _said(
    history: Timelines, vocabulary: Vocabulary, codes_I: NDArray[np.int32]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """User row, category, time and signed weight of the events that say something."""
    weights_N = vocabulary.weight_of(history.actions).astype(np.float64)
    codes_N = np.append(codes_I, np.int32(-1))[history.items].astype(np.int64)
    is_said = (weights_N != 0) & (codes_N >= 0)
    return history.user_rows[is_said], codes_N[is_said], history.times_us[is_said], weights_N[is_said]


def _level(past: Timelines, window: Timelines, vocabulary: Vocabulary, codes_I: NDArray[np.int32]) -> _Level:
    num_categories = int(codes_I.max(initial=0)) + 1
    users_E, codes_E, times_us, weights_E = _said(past, vocabulary, codes_I)
    users_O, codes_O, _, weights_O = _said(window, vocabulary, codes_I)
    users_O, codes_O = users_O[weights_O > 0], codes_O[weights_O > 0]
    counts_U = np.bincount(users_O, minlength=past.num_users)
    has_both_U = (counts_U > 0) & (np.bincount(users_E, minlength=past.num_users) > 0)
    place_U = np.cumsum(has_both_U) - 1
    of_E, of_O = has_both_U[users_E], has_both_U[users_O]
    keys = np.concatenate((
        place_U[users_E[of_E]] * num_categories + codes_E[of_E],
        place_U[users_O[of_O]] * num_categories + codes_O[of_O],
    ))  # fmt: skip
    keys_P, pair_of = np.unique(keys, return_inverse=True)
    num_events = int(of_E.sum())
    outcomes = np.bincount(pair_of[num_events:], 1.0 / counts_U[users_O[of_O]], minlength=len(keys_P))
    return _Level(
        users=keys_P // num_categories,
        categories=keys_P % num_categories,
        outcomes=outcomes.astype(np.float64),
        event_pairs=pair_of[:num_events],
        event_times_us=times_us[of_E],
        event_weights=weights_E[of_E],
        num_users=int(has_both_U.sum()),
    )


def _population_loss(levels: Sequence[_Level], populations: Sequence[NDArray[np.float64]]) -> float:
    return float(
        sum(
            -(level.outcomes @ np.log(population[level.categories])) / max(level.num_users, 1)
            for level, population in zip(levels, populations, strict=True)
        )
    )


def _decayed(
    levels: Sequence[_Level], populations: Sequence[NDArray[np.float64]], as_of_us: int, half_life_days: float
) -> list[_Decayed]:
    found = []
    for level, population in zip(levels, populations, strict=True):
        decay_E = decay(level.event_times_us, as_of_us=as_of_us, half_life_days=half_life_days)
        found.append(_Decayed(level, level.wanted(decay_E), level.unwanted(decay_E), population[level.categories]))
    return found


def _best_strength(decayed: _Decayed) -> tuple[float, float]:
    """Least log loss at the default aversion, and the prior strength that has it."""
    if decayed.level.num_users < MIN_USERS:
        return 0.0, DEFAULT_STRENGTH
    return min((decayed.loss(strength, DEFAULT_AVERSION), strength) for strength in STRENGTHS)


def _fit_level(decayed: _Decayed) -> _Fitted:
    """Prior strength, aversion and curve."""
    if decayed.level.num_users < MIN_USERS:
        return DEFAULT_STRENGTH, DEFAULT_AVERSION, _NO_CURVE
    start = np.log([_best_strength(decayed)[1], DEFAULT_AVERSION])
    free = 2 if decayed.unwanted.any() else 1
    bounds = [(float(np.log(low)), float(np.log(high))) for low, high in (PRIOR_STRENGTHS, AVERSIONS)][:free]

    def loss(logs: NDArray[np.float64]) -> float:
        return decayed.loss(float(np.exp(logs[0])), float(np.exp(logs[1])) if free == 2 else DEFAULT_AVERSION)

    # scipy's own first simplex is relative to the start, which is 0 for a number of 1: it would not move.
    simplex = np.vstack([start[:free], start[:free] + np.eye(free)])
    best = np.exp(
        minimize(
            loss,
            start[:free],
            method="Nelder-Mead",
            bounds=bounds,
            options={"xatol": 0.02, "fatol": 1e-5, "initial_simplex": simplex},
        ).x
    )
    strength, aversion = float(best[0]), float(best[1]) if free == 2 else DEFAULT_AVERSION
    return strength, aversion, _curve(decayed, decayed.shares(strength, aversion))


def _curve(decayed: _Decayed, shares_P: NDArray[np.float64]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The isotonic curve of the pairs that have events, if it helps on users it was not fitted on."""
    has_events = (decayed.wanted > 0) | (decayed.unwanted > 0)
    raw, came, users = shares_P[has_events], decayed.level.outcomes[has_events], decayed.level.users[has_events]
    folds = users % NUM_FOLDS
    error_raw = error_curve = 0.0
    for fold in range(NUM_FOLDS):
        held = folds == fold
        points = _isotonic(raw[~held], came[~held])
        error_raw += float(np.sum((raw[held] - came[held]) ** 2))
        error_curve += float(np.sum((np.interp(raw[held], *points) - came[held]) ** 2))
    return _isotonic(raw, came) if error_curve < error_raw else _NO_CURVE


def _isotonic(raw: NDArray[np.float64], came: NDArray[np.float64]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    fitted = IsotonicRegression(y_min=0.0, y_max=1.0).fit(raw, came)
    knots, values = fitted.X_thresholds_, fitted.y_thresholds_
    chosen = np.unique(np.linspace(0, len(knots) - 1, MAX_CURVE_POINTS).astype(np.int64))
    return tuple(map(float, knots[chosen])), tuple(map(float, values[chosen]))


def _model(
    history: Timelines,
    vocabulary: Vocabulary,
    taxonomy: Taxonomy,
    as_of_us: int,
    half_lives_days: tuple[float, float],
    horizon_days: float,
    fitted: Sequence[_Fitted],
    num_users: int,
) -> AffinityModel:
    half_life_days, population_days = half_lives_days
    levels = []
    for names, codes_I, (strength, aversion, curve) in zip(taxonomy.names, taxonomy.codes_LI, fitted, strict=True):
        population = population_shares(history, vocabulary, codes_I, as_of_us=as_of_us, half_life_days=population_days)
        levels.append(LevelModel(names, tuple(population.tolist()), strength, aversion, *curve))
    return AffinityModel(half_life_days, population_days, horizon_days, tuple(levels), num_users)
