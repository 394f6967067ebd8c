"""The reward model predicts from other users' rounds alone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from benchmarks.logged_world import World
from sonder.experiments.logged_feedback import LoggedFeedback
from sonder.experiments.reward_model import cross_fitted_rewards, fold_of_rounds


def linear_world(num_rounds: int, seed: int) -> tuple[LoggedFeedback, np.ndarray]:
    """Amounts that are linear in context, action, position and context x action."""
    rng = np.random.default_rng(seed)
    fixed = np.random.default_rng(99)
    contexts = rng.normal(size=(num_rounds, 2))
    actions, positions = rng.integers(5, size=num_rounds), rng.integers(3, size=num_rounds)
    expected = (
        contexts @ fixed.normal(size=(2, 5)) + fixed.normal(size=5) + np.array([0.0, 1.0, 2.0])[positions][:, None]
    )
    rewards = expected[np.arange(num_rounds), actions] + rng.normal(0, 0.1, num_rounds)
    return LoggedFeedback(actions, rewards, np.full(num_rounds, 0.2), 5, positions, contexts), expected


def test_a_linear_truth_is_found_for_every_action_of_every_round() -> None:
    feedback, expected = linear_world(3_000, 1)
    predicted = cross_fitted_rewards(feedback)
    assert np.abs(predicted - expected).max() < 0.1


def test_chances_are_between_0_and_1_and_order_like_the_truth() -> None:
    feedback, _, expected = World.of().log(800, 1)
    predicted = cross_fitted_rewards(feedback)
    assert predicted.min() > 0
    assert predicted.max() < 1
    assert np.corrcoef(predicted.ravel(), expected.ravel())[0, 1] > 0.8
    taken = np.arange(len(feedback)), feedback.actions
    assert predicted[taken].mean() == pytest.approx(feedback.rewards.mean(), abs=0.01)


def test_a_users_rewards_do_not_reach_their_own_predictions() -> None:
    feedback, _, _ = World.of().log(60, 1)
    users = feedback.user_codes
    before = cross_fitted_rewards(feedback)
    changed = cross_fitted_rewards(
        replace(feedback, rewards=np.where(users == 7, 1 - feedback.rewards, feedback.rewards))
    )
    folds = fold_of_rounds(feedback, 3, 0)
    same_fold = folds == folds[users == 7][0]
    np.testing.assert_array_equal(before[same_fold], changed[same_fold])
    assert not np.array_equal(before[~same_fold], changed[~same_fold])


def test_rounds_of_a_user_share_a_fold_and_folds_are_even() -> None:
    feedback, _, _ = World.of().log(31, 1)
    folds = fold_of_rounds(feedback, 3, 5)
    for user in range(31):
        assert len(set(folds[feedback.user_codes == user])) == 1
    assert np.ptp(np.bincount(folds)) <= 4


def test_features_of_actions_carry_over_to_an_action_that_was_seldom_logged() -> None:
    """Reward = context * feature of the action; action 4 occurs five times in 2,000."""
    rng = np.random.default_rng(3)
    features, contexts = np.linspace(-1, 1, 5)[:, None], rng.normal(size=(2_000, 1))
    actions = np.where(np.arange(2_000) < 5, 4, rng.integers(4, size=2_000))
    rewards = (contexts * features[actions]).ravel() + rng.normal(0, 0.1, 2_000)
    feedback = LoggedFeedback(actions, rewards, np.full(2_000, 0.2), 5, contexts=contexts)
    truth = contexts.ravel() * features[4]
    with_features = cross_fitted_rewards(feedback, action_features=features)[:, 4] - truth
    without = cross_fitted_rewards(feedback)[:, 4] - truth
    assert np.sqrt(np.mean(with_features**2)) < 0.5 * np.sqrt(np.mean(without**2))


def test_without_contexts_the_model_is_a_number_per_action() -> None:
    feedback, _ = linear_world(2_000, 2)
    predicted = cross_fitted_rewards(replace(feedback, contexts=None, positions=None))
    assert len(np.unique(predicted.round(9), axis=0)) == 3  # one row per fold


def test_equal_rewards_are_predicted_as_they_are() -> None:
    feedback, _ = linear_world(50, 2)
    np.testing.assert_array_equal(cross_fitted_rewards(replace(feedback, rewards=np.zeros(50))), np.zeros((50, 5)))


def test_one_user_cannot_be_split() -> None:
    feedback, _ = linear_world(10, 2)
    with pytest.raises(ValueError, match="folds of 1 users"):
        cross_fitted_rewards(replace(feedback, users=np.zeros(10, dtype=np.int64)))
    with pytest.raises(ValueError, match="features of 4 actions"):
        cross_fitted_rewards(feedback, action_features=np.zeros((4, 2)))
