"""What would a new ranker have earned? Off-policy evaluation from the logs of another, with their propensities.

Shapes: N rounds, A actions, L positions. r reward, w = new policy / logging policy of the action that was taken,
q(x, a) expected reward by a model, V value: mean reward per round. Each estimate is a mean of round values, SNIPS a
ratio of two.
ips          mean(w r). Unbiased where the logging policy can take what the new one takes (Horvitz & Thompson, 1952)
clipped_ips  mean(min(w, sqrt N) r): less variance, biased downwards for rewards >= 0 (Ionides, Truncated Importance
             Sampling, 2008, whose cap it is)
snips        sum(w r) / sum(w): self-normalised, bounded by the rewards, bias of order 1/N (Swaminathan & Joachims,
             The Self-Normalized Estimator for Counterfactual Learning, NIPS 2015)
dm           mean(sum_a new(a) q(x, a)): direct method, as good as its model. Its interval knows nothing of the
             model's error
dr           mean(dm + w (r - q(x, a))): doubly robust, unbiased if the propensities or the model are right (Dudik,
             Langford & Li, ICML 2011; Dudik, Erhan, Langford & Li, Statistical Science 2014)
switch_dr    dr without the corrections whose w > tau (Wang, Agarwal & Dudik, ICML 2017); tau by `switching`
Intervals are 95 %: normal, and percentiles of a bootstrap; both take all rounds of a user together. q is held fixed.
Limits: rounds are independent between users, and the logging policy did not learn from them within the log. Arrays of
[N, A] are held in memory. Lists: see `logged_feedback`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from sonder.experiments.clustered import NUM_RESAMPLES, Interval, estimate_ratio
from sonder.experiments.logged_feedback import Floats, Indices, LoggedFeedback, policy_at_positions
from sonder.experiments.reward_model import cross_fitted_rewards
from sonder.experiments.support import Support, effective_size, measure_support
from sonder.experiments.switching import choose_tau, switched_probability

__all__ = ["ESTIMATORS", "Estimator", "PolicyValue", "doubly_robust_rounds", "evaluate_policy"]

Estimator = Literal["ips", "clipped_ips", "snips", "dm", "dr", "switch_dr"]
ESTIMATORS: tuple[Estimator, ...] = get_args(Estimator)
_OF_MODEL = frozenset({"dm", "dr", "switch_dr"})


@dataclass(frozen=True)
class PolicyValue:
    """One estimator's answer. `threshold` is the cap of clipped IPS or the tau of switch-DR."""

    estimator: Estimator
    value: float
    standard_error: float
    interval: Interval
    bootstrap_interval: Interval
    threshold: float | None
    effective_rounds: float  # of the weights that this estimator uses: 0 for the direct method
    max_weight: float
    unsupported_share: float
    support: Support  # of the raw weights, the same for all estimators
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class _Rounds:
    """A log beside the policy that is asked about."""

    feedback: LoggedFeedback
    policy_NA: Floats
    weights_N: Floats
    user_codes_N: Indices
    direct_N: Floats  # sum_a new(a) q(x, a); zeros without a model
    corrections_N: Floats  # w (r - q)


@dataclass(frozen=True)
class _Terms:
    """An estimate before it is added up: a ratio of sums over the rounds."""

    numerators_N: Floats
    denominators_N: Floats
    used_weights_N: Floats
    threshold: float | None = None
    warnings: tuple[str, ...] = ()


def evaluate_policy(
    feedback: LoggedFeedback,
    policy: Floats,
    *,
    estimators: Sequence[Estimator] = ESTIMATORS,
    expected_rewards: Floats | None = None,
    action_features: Floats | None = None,
    clip: float | None = None,
    tau: float | None = None,
    largest_error: float | None = None,
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
) -> dict[Estimator, PolicyValue]:
    """Value of `policy` ([N, A] or [N, A, L], N = 1 without context) by each estimator.

    `expected_rewards` [N, A] are the caller's own q at each round's position, from a model that did not see these
    rounds; without them one is cross-fitted. Propensities or a policy that cannot be raise DataError.
    """
    unknown = set(estimators) - set(ESTIMATORS)
    if unknown:
        raise ValueError(f"{sorted(unknown)} are no estimators: {', '.join(ESTIMATORS)}")
    needs_model = bool(_OF_MODEL & set(estimators))
    if needs_model and expected_rewards is None:
        expected_rewards = cross_fitted_rewards(feedback, action_features=action_features, seed=seed)
    rounds = _rounds(feedback, policy, expected_rewards if needs_model else None)
    support = measure_support(feedback, rounds.policy_NA, rounds.weights_N, rounds.user_codes_N)
    answers = {}
    for name in estimators:
        terms = _terms(name, rounds, clip=clip, tau=tau, largest_error=largest_error)
        answers[name] = _answer(name, terms, rounds, support, num_resamples, seed)
    return answers


def doubly_robust_rounds(feedback: LoggedFeedback, policy: Floats, expected_rewards: Floats) -> Floats:
    """What `dr` is the mean of, round by round [N]: two policies on one log are compared by the differences."""
    rounds = _rounds(feedback, policy, expected_rewards)
    return rounds.direct_N + rounds.corrections_N


def _rounds(feedback: LoggedFeedback, policy: Floats, expected_NA: Floats | None) -> _Rounds:
    policy_NA = policy_at_positions(policy, feedback)
    taken = np.arange(len(feedback)), feedback.actions
    weights = policy_NA[taken] / feedback.propensities
    direct = corrections = np.zeros(len(feedback))
    if expected_NA is not None:
        if expected_NA.shape != policy_NA.shape or not np.isfinite(expected_NA).all():
            raise ValueError(
                f"expected rewards of shape {expected_NA.shape}: finite numbers {policy_NA.shape} are needed"
            )
        direct = np.einsum("na,na->n", policy_NA, expected_NA)
        corrections = weights * (feedback.rewards - expected_NA[taken])
    return _Rounds(feedback, policy_NA, weights, feedback.user_codes, direct, corrections)


def _terms(
    name: Estimator, rounds: _Rounds, *, clip: float | None, tau: float | None, largest_error: float | None
) -> _Terms:
    weights, rewards = rounds.weights_N, rounds.feedback.rewards
    ones = np.ones_like(weights)
    match name:
        case "ips":
            return _Terms(weights * rewards, ones, weights)
        case "snips":
            return _self_normalised(weights, rewards)
        case "clipped_ips":
            return _clipped(weights, rewards, float(np.sqrt(len(weights))) if clip is None else clip)
        case "dm":
            doubt = "the interval holds the spread of contexts alone, not the error of the reward model"
            return _Terms(rounds.direct_N, ones, np.zeros_like(weights), warnings=(doubt,))
        case "dr":
            return _Terms(rounds.direct_N + rounds.corrections_N, ones, weights)
        case "switch_dr":
            return _switched(rounds, tau, largest_error)


def _self_normalised(weights: Floats, rewards: Floats) -> _Terms:
    if not weights.any():
        # Nothing that the new policy does was ever logged: 0 / 0. No number is better than a wrong one.
        nothing = np.full_like(weights, np.nan)
        return _Terms(nothing, np.ones_like(weights), weights, warnings=("no round has any weight",))
    return _Terms(weights * rewards, weights, weights)


def _clipped(weights: Floats, rewards: Floats, cap: float) -> _Terms:
    used = np.minimum(weights, cap)
    lost, num_clipped = float(np.mean(weights - used)), int((weights > cap).sum())
    doubt = f"{num_clipped:,} weights are cut to {cap:.4g}: {lost:.2%} of the new policy's choices count as unrewarded"
    return _Terms(used * rewards, np.ones_like(weights), used, cap, (doubt,) if num_clipped else ())


def _switched(rounds: _Rounds, tau: float | None, largest_error: float | None) -> _Terms:
    weights = rounds.weights_N
    if tau is None:
        tau = choose_tau(
            rounds.feedback, rounds.policy_NA, weights, rounds.direct_N, rounds.corrections_N, rounds.user_codes_N,
            largest_error=largest_error,
        )  # fmt: skip
    kept = weights <= tau
    values = rounds.direct_N + np.where(kept, rounds.corrections_N, 0.0)
    share = switched_probability(rounds.feedback, rounds.policy_NA, weights, tau)
    doubt = f"{share:.1%} of the new policy's choices have weights above {tau:.4g} and rest on the reward model alone"
    used = np.where(kept, weights, 0.0)
    return _Terms(values, np.ones_like(weights), used, tau, (doubt,) if share > 0 else ())


def _answer(
    name: Estimator, terms: _Terms, rounds: _Rounds, support: Support, num_resamples: int, seed: int
) -> PolicyValue:
    found = estimate_ratio(
        terms.numerators_N, terms.denominators_N, rounds.user_codes_N, num_resamples=num_resamples, seed=seed
    )
    return PolicyValue(
        estimator=name,
        value=found.value,
        standard_error=found.standard_error,
        interval=found.interval,
        bootstrap_interval=found.bootstrap_interval,
        threshold=terms.threshold,
        effective_rounds=effective_size(terms.used_weights_N),
        max_weight=float(terms.used_weights_N.max()),
        unsupported_share=support.unsupported_share,
        support=support,
        warnings=(*terms.warnings, *support.warnings),
    )
