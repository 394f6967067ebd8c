"""The threshold leaves weights alone where they are harmless and switches where they ruin the estimate."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.logged_world import World
from sonder.experiments.logged_feedback import LoggedFeedback, policy_at_positions
from sonder.experiments.off_policy import evaluate_policy
from sonder.experiments.switching import switched_probability


def rare_action(seed: int) -> tuple[LoggedFeedback, np.ndarray, np.ndarray]:
    """The new policy takes action 1 in a tenth of the rounds, the logging policy in one of 2,000. Value: 0.5."""
    rng = np.random.default_rng(seed)
    chances = np.array([0.9995, 0.0005])
    actions = (rng.random(2_000) < chances[1]).astype(np.int64)
    rewards = (rng.random(2_000) < 0.5).astype(float)
    feedback = LoggedFeedback(actions, rewards, chances[actions], 2, logging_policy=chances[None])
    return feedback, np.array([[0.9, 0.1]]), np.full((2_000, 2), 0.5)


def test_a_log_that_overlaps_is_not_switched() -> None:
    feedback, policy, expected = World.of(distance=0.6).log(1_000, 1)
    answer = evaluate_policy(feedback, policy, expected_rewards=expected, estimators=["switch_dr"])["switch_dr"]
    assert answer.threshold == np.inf
    assert answer.warnings == ()


def test_a_small_feared_error_switches_huge_weights_off_and_lowers_the_error() -> None:
    errors = []
    for seed in range(30):
        feedback, policy, predicted = rare_action(seed)
        found = evaluate_policy(
            feedback, policy, expected_rewards=predicted, estimators=["dr", "switch_dr"], largest_error=0.05,
            num_resamples=2,
        )  # fmt: skip
        errors.append([found["dr"].value - 0.5, found["switch_dr"].value - 0.5])
        if feedback.actions.any():
            assert found["switch_dr"].threshold is not None
            assert found["switch_dr"].threshold < 200
            assert any("10.0% of the new policy's choices have weights above" in t for t in found["switch_dr"].warnings)
    mean_squares = np.square(errors).mean(axis=0)
    assert mean_squares[1] < 0.2 * mean_squares[0]


def test_what_is_switched_off_is_counted_from_the_logging_policy_or_from_the_log() -> None:
    feedback, policy, _ = World.of().log(4_000, 2, with_policy=True)
    policy_NA = policy_at_positions(policy, feedback)
    weights = policy_NA[np.arange(len(feedback)), feedback.actions] / feedback.propensities
    assert feedback.logging_policy is not None
    known = switched_probability(feedback, policy_NA, weights, 4.0)
    guessed = switched_probability(World.of().log(4_000, 2)[0], policy_NA, weights, 4.0)
    assert 0.05 < known < 0.95
    error = np.std(np.where(weights > 4, weights, 0)) / len(weights) ** 0.5
    assert guessed == pytest.approx(known, abs=5 * error)  # rounds of a user share a context
    assert switched_probability(feedback, policy_NA, weights, np.inf) == 0
