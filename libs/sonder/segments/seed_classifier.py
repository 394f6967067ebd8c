"""What sets seeds apart from everybody: an L2-regularised logistic regression on vectors and features.

Shapes: N users, S seeds, B background users, M columns (the vector's and the features').
Score of x: log p(x | seed) / p(x | anybody). The background is everybody, members of the audience whom no list names
included, so this is learning from positive and unlabelled users (Elkan & Noto, KDD 2008): the fitted log odds less the
log of S / B, the odds with which the two sets were drawn. A chance of membership would need the audience's true size.
Columns are standardised by the background. Strength is chosen by the likelihood of held-out seeds and background.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression

STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # scikit-learn's C: the smaller, the nearer to "all alike"
_MAX_ITERATIONS = 500
_MIN_SPREAD = 1e-6

Columns = NDArray[np.float32]
Scores = NDArray[np.float64]


@dataclass(frozen=True)
class SeedClassifier:
    """A fitted classifier."""

    weights_M: NDArray[np.float64]  # of the raw columns: standardisation is folded in
    intercept: float
    strength: float

    def score(self, columns_NM: Columns) -> Scores:
        """Log likelihood ratio of each user [N]: 0 where seeds are as common as everybody."""
        scores: Scores = columns_NM @ self.weights_M + self.intercept
        return scores


def fit_classifier(
    seeds_SM: Columns, background_BM: Columns, folds_S: NDArray[np.int64], folds_B: NDArray[np.int64]
) -> tuple[SeedClassifier, Scores, Scores]:
    """Choose the strength -> the classifier, held-out scores of the seeds [S] and of the background [B].

    Every user is scored by a classifier that was fitted without its fold.
    """
    columns = np.concatenate([seeds_SM, background_BM])
    is_seed = np.arange(len(columns)) < len(seeds_SM)
    folds = np.concatenate([folds_S, folds_B])
    best: tuple[float, float, Scores] | None = None
    for strength in STRENGTHS:
        held_out = np.empty(len(columns))
        for fold in np.unique(folds):
            is_out = folds == fold
            held_out[is_out] = _fit(columns[~is_out], is_seed[~is_out], strength).score(columns[is_out])
        log_odds = held_out + np.log(len(seeds_SM) / len(background_BM))
        loss = float(np.mean(np.logaddexp(0, np.where(is_seed, -log_odds, log_odds))))
        if best is None or loss < best[0]:
            best = loss, strength, held_out
    assert best is not None
    _, strength, held_out = best
    return _fit(columns, is_seed, strength), held_out[is_seed], held_out[~is_seed]


def _fit(columns_NM: Columns, is_seed_N: NDArray[np.bool_], strength: float) -> SeedClassifier:
    background = columns_NM[~is_seed_N].astype(np.float64)
    mean_M, spread_M = background.mean(axis=0), background.std(axis=0)
    scale_M = np.where(spread_M > _MIN_SPREAD, 1 / np.maximum(spread_M, _MIN_SPREAD), 0.0)
    model = LogisticRegression(C=strength, max_iter=_MAX_ITERATIONS)
    model.fit((columns_NM - mean_M) * scale_M, is_seed_N)
    weights_M = model.coef_[0] * scale_M
    drawn_odds = np.log(is_seed_N.sum() / (~is_seed_N).sum())
    return SeedClassifier(weights_M, float(model.intercept_[0] - mean_M @ weights_M - drawn_odds), strength)
