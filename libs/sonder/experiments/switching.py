"""From which importance weight on is a reward model the lesser evil? The threshold tau of switch-DR.

tau minimises an estimate of the mean squared error: the estimator's variance (by user) plus the square of an upper
bound of its bias. What is switched off loses at most `largest_error` for each choice of the evaluation policy whose
weight is above tau: bias <= largest_error * P(weight > tau under the evaluation policy).
Source: Wang, Agarwal & Dudik, Optimal and Adaptive Off-policy Evaluation in Contextual Bandits, ICML 2017, who bound
rewards by R_max. Ours: the grid, that plain doubly robust (tau = infinity) always stands in it, and that without a
logged distribution the probability is estimated from the log itself, mean(w 1[w > tau]).
Limits: the bound is careful. Where rewards are rare (a click rate of 0.4 %) an error of 1 is feared and plain doubly
robust wins nearly always; give `largest_error` what an expected reward can be wrong by, and it switches sooner.
"""

from __future__ import annotations

import numpy as np

from sonder.experiments.logged_feedback import Floats, Indices, LoggedFeedback, policy_at_positions

__all__ = ["choose_tau", "switched_probability"]

NUM_TAUS = 20


def choose_tau(
    feedback: LoggedFeedback,
    policy_NA: Floats,
    weights_N: Floats,
    direct_N: Floats,
    corrections_N: Floats,
    user_codes_N: Indices,
    *,
    largest_error: float | None = None,
) -> float:
    """The threshold of least estimated error, infinity for plain doubly robust.

    `direct` [N] is the reward model's value of each round, `corrections` [N] is weight * (reward - predicted).
    `largest_error` defaults to the range of the logged rewards, 0 among them.
    """
    if largest_error is None:
        rewards: Floats = np.append(feedback.rewards, 0.0)
        largest_error = float(rewards.max() - rewards.min())
    positive = weights_N[weights_N > 0]
    if not len(positive):
        return float("inf")
    taus = np.append(np.geomspace(positive.min(), positive.max(), NUM_TAUS)[:-1], np.inf)
    errors = []
    for tau in taus:
        values = direct_N + np.where(weights_N <= tau, corrections_N, 0.0)
        sums_U = np.bincount(user_codes_N, weights=values - values.mean())
        bias = largest_error * switched_probability(feedback, policy_NA, weights_N, float(tau))
        errors.append(float(np.sum(sums_U**2)) / len(values) ** 2 + bias**2)
    return float(taus[int(np.argmin(errors))])


def switched_probability(feedback: LoggedFeedback, policy_NA: Floats, weights_N: Floats, tau: float) -> float:
    """How often the evaluation policy makes a choice whose weight is above tau."""
    if feedback.logging_policy is None:
        return min(1.0, float(np.mean(np.where(weights_N > tau, weights_N, 0.0))))
    logging_NA = policy_at_positions(feedback.logging_policy, feedback)
    # w > tau without dividing by the zeros of the logging policy, whose weight is infinite.
    return float(np.where(policy_NA > tau * logging_NA, policy_NA, 0.0).sum() / len(feedback)) if tau < np.inf else 0.0
