"""From a list of seeds to how much anybody is like them: seed density and a classifier, combined and calibrated.

Shapes: N users, S seeds, B background users, D width of the vectors, F features.
Two views of the same question, log p(x | seed) / p(x | anybody). The density (segments.seed_density) follows seeds
into several corners of the space; the classifier (segments.seed_classifier) weighs every column by itself, along one
direction. Both score every seed held out; the combination is w density + (1 - w) classifier, each in units of its
spread over the background, with the weight nearest to one half whose held-out loss is within a standard error of the
least: few seeds cannot prove one view better than the other.
Similarity is the calibrated chance that a user is a seed when seeds and others are drawn equally often: 0.5 says as
common among the seeds as among everybody, 0.9 nine times as common.
Limits: seeds are taken for a fair draw of the audience; a list that was picked otherwise is followed where it leads.
Deterministic: the same users in the same order and the same `seed` give the same scores.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from sonder.segments.seed_classifier import SeedClassifier, fit_classifier
from sonder.segments.seed_density import SeedDensity, fit_density

MIN_SEEDS = 50  # below it an audience comes with a warning
LEAST_SEEDS = 10  # below it there is none: folds of two
MAX_SEEDS = 2_048  # past it a draw of them is fitted
MAX_BACKGROUND = 2_048
NUM_FOLDS = 5
PART_USERS = 1 << 17  # scored at once: what that takes is not the size of the release
WEIGHTS = tuple(step / 10 for step in range(11))
_CALIBRATION_STRENGTH = 1.0
_LEAST_SLOPE = 1e-3  # a list without any pattern still ranks, with similarities near one half

Scores = NDArray[np.float64]


@dataclass(frozen=True)
class People:
    """Users as both views see them; rows correspond."""

    vectors_ND: NDArray[np.float32]  # unit rows
    features_NF: NDArray[np.float32]

    @property
    def num(self) -> int:
        return len(self.vectors_ND)

    @property
    def columns(self) -> NDArray[np.float32]:
        """All that the classifier reads [N, D + F]."""
        return np.concatenate([self.vectors_ND, self.features_NF], axis=1)

    def take(self, rows: NDArray[np.int64]) -> People:
        return People(self.vectors_ND[rows], self.features_NF[rows])

    def parts(self) -> Iterator[People]:
        """All of them in order, PART_USERS at a time, without a copy; one empty part of nobody."""
        for start in range(0, max(self.num, 1), PART_USERS):
            part = slice(start, start + PART_USERS)
            yield People(self.vectors_ND[part], self.features_NF[part])


@dataclass(frozen=True)
class Combination:
    """slope * (weight * density / density_spread + (1 - weight) * classifier / classifier_spread) + intercept."""

    weight: float
    density_spread: float
    classifier_spread: float
    slope: float = 1.0
    intercept: float = 0.0

    def __call__(self, density_N: Scores, classifier_N: Scores) -> Scores:
        density, classifier = density_N / self.density_spread, classifier_N / self.classifier_spread
        mixed: Scores = self.weight * density + (1 - self.weight) * classifier
        return self.slope * mixed + self.intercept


@dataclass(frozen=True)
class Lookalike:
    """A fitted audience."""

    density: SeedDensity
    classifier: SeedClassifier
    combination: Combination
    held_out_auc: float  # chance that a held-out seed is above a random other user
    num_seeds: int  # fitted on

    def log_ratio(self, people: People) -> Scores:
        """Calibrated log of how much commoner users like each are among the seeds than among everybody [N]."""
        return self.combination(
            self.density.score(people.vectors_ND, people.features_NF), self.classifier.score(people.columns)
        )

    def similarity(self, people: People) -> Scores:
        """Estimated similarity of each user [N] in (0, 1), in the order of `log_ratio`."""
        similarity: Scores = expit(self.log_ratio(people))
        return similarity


def fit_lookalike(seeds: People, background: People, *, seed: int = 7) -> Lookalike:
    """Fit on S seeds and B other users drawn from everybody else; past MAX_SEEDS and MAX_BACKGROUND on a draw of them.

    ValueError for fewer than NUM_FOLDS of either; callers ask for LEAST_SEEDS.
    """
    if min(seeds.num, background.num) < NUM_FOLDS:
        raise ValueError(f"{seeds.num} seeds and {background.num} others, expected {NUM_FOLDS} of each at least")
    draw = np.random.default_rng(seed)
    seeds, background = drawn(seeds, MAX_SEEDS, draw), drawn(background, MAX_BACKGROUND, draw)
    density, density_S, density_B = fit_density(
        seeds.vectors_ND, seeds.features_NF, background.vectors_ND, background.features_NF, draw
    )
    folds_S, folds_B = deal_folds(seeds.num, draw), deal_folds(background.num, draw)
    classifier, odds_S, odds_B = fit_classifier(seeds.columns, background.columns, folds_S, folds_B)
    combination = _combine(density_S, density_B, odds_S, odds_B)
    of_seeds, of_background = combination(density_S, odds_S), combination(density_B, odds_B)
    return Lookalike(density, classifier, combination, auc(of_seeds, of_background), seeds.num)


def few_seeds(num_seeds: int) -> list[str]:
    """What a user is told of a short list; nothing of one that is long enough."""
    if num_seeds >= MIN_SEEDS:
        return []
    return [f"{num_seeds} seeds can be used, fewer than {MIN_SEEDS}: the ranking and what is said of it are rough."]


def drawn(people: People, most: int, draw: np.random.Generator) -> People:
    """The people themselves, or a draw of `most` of them, in their order."""
    if people.num <= most:
        return people
    return people.take(np.sort(draw.choice(people.num, most, replace=False)))


def deal_folds(num: int, draw: np.random.Generator) -> NDArray[np.int64]:
    """Fold of each of `num` users, folds of equal size but for one."""
    return draw.permutation(np.arange(num) % NUM_FOLDS)


def auc(of_seeds_S: Scores, of_background_B: Scores) -> float:
    """Chance that a seed is above a background user, ties count half."""
    is_seed = np.arange(len(of_seeds_S) + len(of_background_B)) < len(of_seeds_S)
    return float(roc_auc_score(is_seed, np.concatenate([of_seeds_S, of_background_B])))


def _combine(density_S: Scores, density_B: Scores, odds_S: Scores, odds_B: Scores) -> Combination:
    """Weight and calibration, both from held-out scores."""
    spread_density, spread_odds = (max(float(np.std(scores)), 1e-9) for scores in (density_B, odds_B))
    tried = []
    for weight in WEIGHTS:
        mixed = Combination(weight, spread_density, spread_odds)
        slope, intercept = _calibrate(mixed(density_S, odds_S), mixed(density_B, odds_B))
        calibrated = Combination(weight, spread_density, spread_odds, slope, intercept)
        losses_S = np.logaddexp(0, -calibrated(density_S, odds_S))
        tried.append((calibrated, losses_S, float(np.mean(np.logaddexp(0, calibrated(density_B, odds_B))))))
    means = np.array([losses_S.mean() + loss_B for _, losses_S, loss_B in tried])
    best = int(np.argmin(means))
    # Paired: how sure the difference from the best is, seed by seed.
    errors = np.array([np.std(losses - tried[best][1]) for _, losses, _ in tried]) / np.sqrt(len(density_S))
    is_as_good = means <= means[best] + errors
    chosen = min(np.flatnonzero(is_as_good).tolist(), key=lambda place: (abs(WEIGHTS[place] - 0.5), means[place]))
    return tried[chosen][0]


def _calibrate(of_seeds_S: Scores, of_background_B: Scores) -> tuple[float, float]:
    """Platt's line from a score to the log ratio: seeds and background weigh the same in all."""
    scores = np.concatenate([of_seeds_S, of_background_B])
    is_seed = np.arange(len(scores)) < len(of_seeds_S)
    weights = np.where(is_seed, 0.5 / len(of_seeds_S), 0.5 / len(of_background_B)) * len(scores)
    model = LogisticRegression(C=_CALIBRATION_STRENGTH).fit(scores[:, None], is_seed, sample_weight=weights)
    return max(float(model.coef_[0, 0]), _LEAST_SLOPE), float(model.intercept_[0])
