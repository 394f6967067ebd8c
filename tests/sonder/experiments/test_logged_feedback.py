"""A log that cannot be one is refused with what was found."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from benchmarks.logged_world import World
from sonder.core.errors import DataError
from sonder.experiments.logged_feedback import Floats, LoggedFeedback, policy_at_positions

LOG = LoggedFeedback(np.array([0, 1, 2]), np.array([0.0, 1.0, 0.0]), np.array([0.2, 0.3, 0.5]), 3)


@pytest.mark.parametrize(
    ("propensity", "reason"),
    [(0.0, "1 0 or below"), (-0.1, "1 0 or below"), (1.01, "1 above 1"), (np.nan, "1 missing")],
)
def test_a_propensity_that_is_no_chance_is_refused(propensity: float, reason: str) -> None:
    with pytest.raises(DataError, match=f"of 3 propensities {reason}") as refused:
        replace(LOG, propensities=np.array([0.2, propensity, 0.5]))
    assert refused.value.expected
    assert refused.value.do


@pytest.mark.parametrize(
    "policy",
    [
        np.array([[0.5, 0.4, 0.0]]),
        np.array([[0.5, 0.6, 0.0]]),
        np.array([[1.2, -0.2, 0.0]]),
        np.array([[np.nan, 0.5, 0.5]]),
        np.full((3, 3, 1), 1.0),
    ],
)
def test_a_policy_that_does_not_sum_to_one_is_refused(policy: Floats) -> None:
    with pytest.raises(DataError, match="no distributions"):
        policy_at_positions(policy, LOG)


@pytest.mark.parametrize("shape", [(3, 2), (2, 3), (3,), (1, 3, 1, 1)])
def test_a_policy_of_another_shape_is_a_mistake_of_the_caller(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="shape"):
        policy_at_positions(np.full(shape, 1 / 3), LOG)


def test_a_policy_must_know_every_position_of_the_log() -> None:
    with pytest.raises(ValueError, match="1 positions for a log of 2"):
        policy_at_positions(np.full((1, 3, 1), 1 / 3), replace(LOG, positions=np.array([0, 1, 0])))


def test_propensities_must_be_those_of_the_logging_policy() -> None:
    logging = np.array([[0.2, 0.3, 0.5]])
    assert replace(LOG, logging_policy=logging).logging_policy is logging
    with pytest.raises(DataError, match=r"2 propensities differ from the logging policy; round 0 logged 0\.2"):
        replace(LOG, logging_policy=np.array([[0.3, 0.3, 0.4]]))
    feedback, _, _ = World.of().log(20, 1, with_policy=True)
    with pytest.raises(DataError, match="differ"):
        replace(feedback, positions=1 - feedback.places)


@pytest.mark.parametrize(
    ("name", "array"), [("actions", [0, 1, 3]), ("actions", [0, -1, 2]), ("positions", [0, -1, 0])]
)
def test_indices_out_of_range_are_refused(name: str, array: list[int]) -> None:
    with pytest.raises(DataError, match=f"{name} run from"):
        replace(LOG, **{name: np.array(array)})


def test_rewards_must_be_known() -> None:
    with pytest.raises(DataError, match="1 rewards of 3"):
        replace(LOG, rewards=np.array([0.0, np.inf, 1.0]))


def test_arrays_must_be_of_one_length() -> None:
    with pytest.raises(ValueError, match="2 rewards for 3 actions"):
        replace(LOG, rewards=np.zeros(2))
    with pytest.raises(ValueError, match="no rounds"):
        LoggedFeedback(np.array([], dtype=np.int64), np.array([]), np.array([]), 3)


def test_a_policy_without_context_means_the_same_as_one_that_repeats_it() -> None:
    feedback, _, _ = World.of().log(10, 2)
    policy = np.random.default_rng(0).dirichlet(np.ones(6), size=2).T[None]
    repeated = np.repeat(policy, len(feedback), axis=0)
    np.testing.assert_array_equal(policy_at_positions(policy, feedback), policy_at_positions(repeated, feedback))
