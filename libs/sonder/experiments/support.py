"""Can this log answer for that policy? Importance weights, effective sample size, missing support.

Shapes: N rounds, A actions.
weight            w = evaluation propensity / logging propensity of the action that was taken
effective size    (sum w)^2 / sum w^2 (Kish, Survey Sampling, 1965): as many rounds drawn from the new policy itself
                  would say as much; the same of |w * reward| says how many rewards carry an estimate
mean weight       1 in expectation where the logging policy can take whatever the evaluation policy takes; what is
                  below 1 is support that is missing, or propensities that are not true
unsupported       share of the evaluation policy's choices that the logging policy never made: known when the logging
                  distribution was logged, else the actions that occur nowhere in the log at that position (an action
                  that is rare there and never drawn counts as missing; one that is missing for some contexts alone
                  is not seen)
Limits: thresholds are conventions of this module, written beside their names; numbers are told whatever they are.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sonder.experiments.clustered import estimate_ratio
from sonder.experiments.logged_feedback import Floats, Indices, LoggedFeedback, policy_at_positions

__all__ = ["Support", "effective_size", "measure_support"]

FEW_EFFECTIVE_ROUNDS = 100  # below it an interval of a mean is a guess
SMALL_EFFECTIVE_SHARE = 0.01  # of the rounds: the policies hardly overlap
FEW_EFFECTIVE_REWARDS = 30  # the usual number from which a mean is near normal
HEAVY_ROUND = 0.1  # share of all weight that lies on one round
ERRORS_FROM_ONE = 3.0  # standard errors of the mean weight: chance goes beyond in 3 of 1,000 logs
MISSING_SHARE = 0.001  # of the choices of the evaluation policy


@dataclass(frozen=True)
class Support:
    """How far the log reaches; `warnings` say with numbers where it does not."""

    num_rounds: int
    num_users: int
    effective_rounds: float
    effective_rewards: float
    max_weight: float
    heaviest_share: float  # of all weight, on one round
    mean_weight: float
    mean_weight_error: float  # standard error, by user
    unsupported_share: float
    is_support_known: bool  # from the logged distribution, not from what occurs
    warnings: tuple[str, ...]


def effective_size(weights_N: Floats) -> float:
    """Kish's effective sample size; 0 when every weight is 0."""
    squares = float(np.sum(weights_N**2))
    return float(np.sum(weights_N)) ** 2 / squares if squares > 0 else 0.0


def measure_support(feedback: LoggedFeedback, policy_NA: Floats, weights_N: Floats, user_codes_N: Indices) -> Support:
    """Look at the weights before any value is believed. `policy_NA` is the evaluation policy at the rounds' places."""
    mean = estimate_ratio(weights_N, np.ones_like(weights_N), user_codes_N, num_resamples=2)
    total = float(weights_N.sum())
    found = Support(
        num_rounds=len(feedback),
        num_users=int(user_codes_N.max()) + 1,
        effective_rounds=effective_size(weights_N),
        effective_rewards=effective_size(np.abs(weights_N * feedback.rewards)),
        max_weight=float(weights_N.max()),
        heaviest_share=float(weights_N.max()) / total if total > 0 else 1.0,
        mean_weight=mean.value,
        mean_weight_error=mean.standard_error,
        unsupported_share=_unsupported_share(feedback, policy_NA),
        is_support_known=feedback.logging_policy is not None,
        warnings=(),
    )
    return Support(**(vars(found) | {"warnings": tuple(_doubts(found))}))


def _unsupported_share(feedback: LoggedFeedback, policy_NA: Floats) -> float:
    if feedback.logging_policy is not None:
        can_log_NA = policy_at_positions(feedback.logging_policy, feedback) > 0
        return float(np.where(can_log_NA, 0.0, policy_NA).sum() / len(feedback))
    places, num_actions = feedback.places, feedback.num_actions
    cells = np.bincount(places * num_actions + feedback.actions, minlength=feedback.num_positions * num_actions)
    never_PA = cells.reshape(-1, num_actions) == 0
    missing = sum(float(policy_NA[places == place][:, never].sum()) for place, never in enumerate(never_PA))
    return missing / len(feedback)


def _doubts(found: Support) -> list[str]:
    share = found.effective_rounds / found.num_rounds
    doubts = []
    if found.effective_rounds < FEW_EFFECTIVE_ROUNDS or share < SMALL_EFFECTIVE_SHARE:
        doubts.append(
            f"{found.num_rounds:,} rounds say as much as {found.effective_rounds:,.1f} drawn from the new policy "
            f"({share:.2%}): the two policies hardly overlap, and intervals are too narrow"
        )
    if found.effective_rewards < FEW_EFFECTIVE_REWARDS:
        doubts.append(
            f"what was earned rests on {found.effective_rewards:,.1f} effective rewards; with fewer than "
            f"{FEW_EFFECTIVE_REWARDS} intervals are too narrow"
        )
    if found.heaviest_share > HEAVY_ROUND:
        doubts.append(f"one round carries {found.heaviest_share:.0%} of all weight (weight {found.max_weight:,.1f})")
    if found.unsupported_share > MISSING_SHARE:
        doubts.append(
            f"{found.unsupported_share:.1%} of the new policy's choices were "
            f"{'impossible' if found.is_support_known else 'never seen'} under the logging policy: IPS counts them as "
            "without reward, SNIPS as average, a reward model guesses them"
        )
    distance = abs(found.mean_weight - 1)
    # A log of the policy itself has weights of exactly 1 and no error: rounding alone is no distance.
    if distance > max(ERRORS_FROM_ONE * found.mean_weight_error, 1e-6):
        errors = f"{distance / found.mean_weight_error:.1f} standard errors" if found.mean_weight_error else "no error"
        doubts.append(
            f"weights average {found.mean_weight:.4f} where truth and full support give 1 ({errors} away): "
            f"{'support is missing, or ' if found.mean_weight < 1 else ''}the logged propensities are not true"
        )
    return doubts
