"""What a log cannot answer is said with numbers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.logged_world import World
from sonder.experiments.logged_feedback import LoggedFeedback, policy_at_positions
from sonder.experiments.support import Support, effective_size, measure_support


def support_of(feedback: LoggedFeedback, policy: np.ndarray) -> Support:
    policy_NA = policy_at_positions(policy, feedback)
    weights = policy_NA[np.arange(len(feedback)), feedback.actions] / feedback.propensities
    return measure_support(feedback, policy_NA, weights, feedback.user_codes)


@given(st.lists(st.floats(0.01, 100), min_size=1, max_size=30), st.floats(0.1, 10))
def test_the_effective_size_lies_between_one_and_the_rounds_and_knows_no_unit(
    weights: list[float], unit: float
) -> None:
    size = effective_size(np.array(weights))
    assert 1 - 1e-9 <= size <= len(weights) + 1e-9
    assert effective_size(unit * np.array(weights)) == pytest.approx(size)


def test_equal_weights_are_worth_all_rounds_and_one_weight_is_worth_one() -> None:
    assert effective_size(np.full(7, 3.0)) == pytest.approx(7)
    assert effective_size(np.array([0.0, 5.0, 0.0])) == pytest.approx(1)
    assert effective_size(np.zeros(3)) == 0


def test_a_log_that_overlaps_gives_no_warning() -> None:
    feedback, policy, _ = World.of(distance=0.6).log(1_000, 1)
    found = support_of(feedback, policy)
    assert found.warnings == ()
    assert abs(found.mean_weight - 1) < 3 * found.mean_weight_error


def test_missing_support_is_measured_and_pulls_the_mean_weight_below_one() -> None:
    """The logging policy never shows action 0 of 4, which the new policy takes in 40 % of the rounds."""
    rng = np.random.default_rng(1)
    feedback = LoggedFeedback(rng.integers(1, 4, 2_000), np.ones(2_000), np.full(2_000, 1 / 3), 4)
    policy = np.array([[0.4, 0.2, 0.2, 0.2]])
    found = support_of(feedback, policy)
    assert found.unsupported_share == pytest.approx(0.4)
    assert not found.is_support_known
    assert any("40.0% of the new policy's choices were never seen" in text for text in found.warnings)
    assert any("weights average 0.6" in text and "support is missing" in text for text in found.warnings)
    known = support_of(replace(feedback, logging_policy=np.array([[0, 1 / 3, 1 / 3, 1 / 3]])), policy)
    assert known.unsupported_share == pytest.approx(0.4)
    assert any("were impossible" in text for text in known.warnings)


def test_support_is_looked_at_by_position() -> None:
    actions, positions = np.array([0, 0, 1, 1]), np.array([0, 0, 1, 1])
    feedback = LoggedFeedback(actions, np.ones(4), np.ones(4), 2, positions)
    assert support_of(feedback, np.array([[0.5, 0.5]])).unsupported_share == pytest.approx(0.5)
    straight = np.array([[[1.0, 0.0], [0.0, 1.0]]])
    assert support_of(feedback, straight).unsupported_share == 0


def test_propensities_that_are_not_true_show_in_the_mean_weight() -> None:
    feedback, policy, _ = World.of(distance=0.6).log(1_000, 1)
    found = support_of(replace(feedback, propensities=feedback.propensities * 0.8), policy)
    (doubt,) = (text for text in found.warnings if "weights average 1." in text)
    assert doubt.endswith("away): the logged propensities are not true")


def test_too_few_effective_rounds_and_a_heavy_round_are_named() -> None:
    propensities = np.array([0.001, *[0.9] * 199])
    feedback = LoggedFeedback(np.zeros(200, dtype=np.int64), np.ones(200), propensities, 2)
    found = support_of(feedback, np.array([[1.0, 0.0]]))
    assert any("200 rounds say as much as 1.5" in text for text in found.warnings)
    assert any("one round carries 82%" in text for text in found.warnings)
    assert any("1.5 effective rewards" in text for text in found.warnings)


def test_a_false_alarm_of_the_mean_weight_is_rare() -> None:
    """200 true logs with good overlap: three standard errors are passed by chance in 3 of 1,000."""
    world = World.of(distance=0.3)
    alarms = 0
    for seed in range(200):
        feedback, policy, _ = world.log(200, seed)
        alarms += any("weights average" in text for text in support_of(feedback, policy).warnings)
    assert alarms <= 4
