"""What would each action have earned? A cross-fitted linear reward model of context, action and position.

Shapes: N rounds, A actions, L positions, F features of a context, G features of an action, C columns.
score(x, a, l) = intercept + position_l + action_a + x'b + x'W_a, all effects standardised and shrunk (L2); logistic
for rewards of 0 and 1, ridge for amounts. With `action_features` z_a the interaction is x'W z_a, which carries over
between actions. How much is shrunk is chosen by the squared error on half of the learning users: w^2 (r - q)^2 is what
a bad model costs the doubly robust estimate. Each round is predicted by a model that saw no round of its user: the
doubly robust estimate is then free of the model's overfitting (cross-fitting: Chernozhukov et al., Double/Debiased
Machine Learning, 2018).
Fitted to what was logged, unweighted: where the logging policy seldom went, the model leans on its shape.
Limits: linear. A caller with a better model passes its own predictions to the estimators instead.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.special import expit
from sklearn.linear_model import LogisticRegression, Ridge

from sonder.experiments.logged_feedback import Floats, Indices, LoggedFeedback

__all__ = ["MAX_INTERACTIONS", "cross_fitted_rewards", "fold_of_rounds"]

NUM_FOLDS = 3
STRENGTHS = (1.0, 10.0, 100.0, 1_000.0, 10_000.0)  # of the L2 penalty, on standardised columns
MAX_INTERACTIONS = 4_000  # columns of context x action; above it the interaction is left out
_MAX_ITERATIONS = 1_000


def cross_fitted_rewards(
    feedback: LoggedFeedback, *, action_features: Floats | None = None, num_folds: int = NUM_FOLDS, seed: int = 0
) -> Floats:
    """Expected reward of every action in each round at its own position -> [N, A].

    `action_features` is [A, G]. Without contexts the model is one number per action and position.
    """
    if action_features is not None and len(action_features) != feedback.num_actions:
        raise ValueError(f"features of {len(action_features)} actions where {feedback.num_actions} are logged")
    layout = _Layout.of(feedback, action_features)
    design_NC, folds_N = layout.design(feedback.actions), fold_of_rounds(feedback, num_folds, seed)
    halves_N = fold_of_rounds(feedback, 2, seed + 1)
    predicted = np.empty((len(feedback), feedback.num_actions))
    for fold in range(int(folds_N.max()) + 1):
        learn, answer = np.flatnonzero(folds_N != fold), np.flatnonzero(folds_N == fold)
        model = _fit_best(design_NC[learn], feedback.rewards[learn], halves_N[learn] == 0)
        predicted[answer] = model.rewards(layout.scores(model.weights_C, answer))
    return predicted


def fold_of_rounds(feedback: LoggedFeedback, num_folds: int, seed: int) -> Indices:
    """Fold of each round [N], the same for all rounds of a user; at least two users."""
    codes_N = feedback.user_codes
    num_users = int(codes_N.max()) + 1
    if min(num_folds, num_users) < 2:
        raise ValueError(f"{num_folds} folds of {num_users} users: cross-fitting needs two of each")
    folds_U = np.random.default_rng(seed).permutation(num_users) % min(num_folds, num_users)
    return folds_U[codes_N].astype(np.int64)


@dataclass(frozen=True)
class _Linear:
    weights_C: Floats
    intercept: float
    is_chance: bool  # scores are log-odds

    def rewards(self, scores: Floats) -> Floats:
        shifted = scores + self.intercept
        return np.asarray(expit(shifted) if self.is_chance else shifted, dtype=np.float64)


def _fit_best(design_NC: sparse.csr_array, rewards_N: Floats, is_first_N: NDArray[np.bool_]) -> _Linear:
    """Fit to all rows with the penalty that, fitted to the first half, predicts the second best."""
    if is_first_N.all() or not is_first_N.any():
        return _fit(design_NC, rewards_N, STRENGTHS[len(STRENGTHS) // 2])  # one user alone: nothing to choose by
    first, second, errors = np.flatnonzero(is_first_N), np.flatnonzero(~is_first_N), []
    for strength in STRENGTHS:
        model = _fit(design_NC[first], rewards_N[first], strength)
        errors.append(float(np.mean((rewards_N[second] - model.rewards(design_NC[second] @ model.weights_C)) ** 2)))
    return _fit(design_NC, rewards_N, STRENGTHS[int(np.argmin(errors))])


def _fit(design_NC: sparse.csr_array, rewards_N: Floats, strength: float) -> _Linear:
    """Constant rewards give the constant."""
    if np.ptp(rewards_N) == 0:
        return _Linear(np.zeros(design_NC.shape[1]), float(rewards_N[0]), is_chance=False)
    if np.isin(rewards_N, (0.0, 1.0)).all():
        logistic = LogisticRegression(C=1 / strength, max_iter=_MAX_ITERATIONS)
        logistic.fit(design_NC, rewards_N.astype(np.int64))
        return _Linear(logistic.coef_[0], float(logistic.intercept_[0]), is_chance=True)
    ridge = Ridge(alpha=strength)
    ridge.fit(design_NC, rewards_N)
    return _Linear(ridge.coef_, float(ridge.intercept_), is_chance=False)


@dataclass(frozen=True)
class _Layout:
    """Columns of the linear model, in this order: positions, actions, context, context x features of the action."""

    places_N: Indices
    num_places: int
    num_actions: int
    contexts_NF: Floats  # standardised; no columns when there are none
    features_AG: Floats  # identity: one weight per action; no columns when the interaction is left out

    @classmethod
    def of(cls, feedback: LoggedFeedback, action_features: Floats | None) -> _Layout:
        contexts = np.zeros((len(feedback), 0)) if feedback.contexts is None else _standardised(feedback.contexts)
        features = np.eye(feedback.num_actions) if action_features is None else _standardised(action_features)
        if contexts.shape[1] * features.shape[1] > MAX_INTERACTIONS:
            features = features[:, :0]
        return cls(feedback.places, feedback.num_positions, feedback.num_actions, contexts, features)

    @property
    def widths(self) -> tuple[int, int, int, int]:
        num_context = self.contexts_NF.shape[1]
        return self.num_places, self.num_actions, num_context, num_context * self.features_AG.shape[1]

    def design(self, actions_N: Indices) -> sparse.csr_array:
        """The logged rounds as rows [N, C]."""
        num_rounds, num_features = len(actions_N), self.features_AG.shape[1]
        rows, ones = np.arange(num_rounds), np.ones(num_rounds)
        places = sparse.csr_array((ones, (rows, self.places_N)), shape=(num_rounds, self.num_places))
        actions = sparse.csr_array((ones, (rows, actions_N)), shape=(num_rounds, self.num_actions))
        contexts = sparse.csr_array(self.contexts_NF)
        chosen = actions @ sparse.csr_array(self.features_AG)
        # Column f * G + g of the interaction holds context f times feature g.
        crossed = sparse.hstack(
            [chosen.multiply(self.contexts_NF[:, [f]]) for f in range(contexts.shape[1])]
            or [sparse.csr_array((num_rounds, contexts.shape[1] * num_features))]
        )
        return sparse.csr_array(sparse.hstack([places, actions, contexts, crossed]))

    def scores(self, weights_C: Floats, rows: Indices) -> Floats:
        """Scores of all actions at the places of `rows`, without the intercept [len(rows), A]."""
        place, action, context, crossed = np.split(weights_C, np.cumsum(self.widths)[:-1])
        contexts = self.contexts_NF[rows]
        per_action_FA = crossed.reshape(contexts.shape[1], self.features_AG.shape[1]) @ self.features_AG.T
        own = place[self.places_N[rows]] + contexts @ context
        return np.asarray(own[:, None] + action[None, :] + contexts @ per_action_FA, dtype=np.float64)


def _standardised(values: Floats) -> Floats:
    """Columns with mean 0 and deviation 1; constant columns become 0."""
    deviation = values.std(axis=0)
    return np.asarray((values - values.mean(axis=0)) / np.where(deviation > 0, deviation, 1.0), dtype=np.float64)
