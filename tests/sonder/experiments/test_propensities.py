"""What exploration logs is the chance with which it drew."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sonder.experiments.interleaving import coins_of_request
from sonder.experiments.logged_feedback import LoggedFeedback
from sonder.experiments.off_policy import evaluate_policy
from sonder.experiments.propensities import explore, next_distribution

SCORES = np.array([1.0, 0.2, -0.5, 0.4])


def chance_of(order: tuple[int, ...], temperature: float, epsilon: float) -> float:
    steps = range(len(order))
    return float(
        np.prod(
            [next_distribution(SCORES, order[:n], temperature=temperature, epsilon=epsilon)[order[n]] for n in steps]
        )
    )


@pytest.mark.parametrize("epsilon", [0.0, 0.3])
def test_the_chances_of_all_orders_sum_to_one(epsilon: float) -> None:
    assert sum(chance_of(order, 0.7, epsilon) for order in permutations(range(4), 3)) == pytest.approx(1)


@given(st.lists(st.floats(0, 1, exclude_max=True), min_size=3, max_size=3), st.floats(0.05, 5), st.floats(0, 1))
def test_what_is_logged_is_the_chance_given_the_items_above(
    draws: list[float], temperature: float, epsilon: float
) -> None:
    found = explore(SCORES, 3, draws.__getitem__, temperature=temperature, epsilon=epsilon)
    assert len(set(found.order)) == 3
    assert found.list_propensity == pytest.approx(chance_of(found.order, temperature, epsilon))
    assert min(found.propensities) >= epsilon / 4
    assert min(found.propensities) > 0


@pytest.mark.parametrize("epsilon", [0.0, 0.3])
def test_orders_are_drawn_as_often_as_their_propensities_say(epsilon: float) -> None:
    """6,000 requests over the 12 orders of two places, each within four binomial errors."""
    coins = coins_of_request("explore")
    found = [explore(SCORES, 2, coins("u", f"r{n}"), temperature=0.7, epsilon=epsilon).order for n in range(6_000)]
    for order in permutations(range(4), 2):
        chance = chance_of(order, 0.7, epsilon)
        assert abs(found.count(order) / 6_000 - chance) < 4 * (chance * (1 - chance) / 6_000) ** 0.5


def test_without_the_uniform_part_it_is_the_order_of_scores_with_gumbel_noise() -> None:
    rng = np.random.default_rng(0)
    orders = np.argsort(-(SCORES / 0.7 + rng.gumbel(size=(20_000, 4))), axis=1)[:, :2]
    for order in permutations(range(4), 2):
        chance = chance_of(order, 0.7, 0.0)
        share = (orders == order).all(axis=1).mean()
        assert abs(share - chance) < 4 * (chance * (1 - chance) / 20_000) ** 0.5


def test_scores_far_apart_and_the_largest_draw_still_name_a_candidate_with_a_chance() -> None:
    for scores in (np.array([0.0, 1e6, 0.0]), np.array([1e6, 0.0, 0.0])):
        for draw in (0.0, 1 - 2**-53):
            found = explore(scores, 1, lambda _, draw=draw: draw, temperature=1.0)
            assert found.propensities == (1.0,)
            assert found.order == (int(np.argmax(scores)),)


@pytest.mark.parametrize(("temperature", "epsilon"), [(0.0, 0.0), (-1.0, 0.0), (1.0, 1.5), (np.nan, 0.0)])
def test_dials_out_of_range_are_refused(temperature: float, epsilon: float) -> None:
    with pytest.raises(ValueError, match="must be above 0"):
        explore(SCORES, 2, lambda _: 0.5, temperature=temperature, epsilon=epsilon)
    with pytest.raises(ValueError, match="5 places for 4 candidates"):
        explore(SCORES, 5, lambda _: 0.5, temperature=1.0)


def test_what_was_logged_evaluates_another_policy_given_the_items_above() -> None:
    """The second place of 4,000 explored lists; reward 1 for item 2. The new policy prefers it."""
    coins, other = coins_of_request("explore"), np.array([0.0, 0.0, 2.0, 0.0])
    lists = [explore(SCORES, 2, coins("u", f"r{n}"), temperature=0.7, epsilon=0.2) for n in range(4_000)]
    policy = np.array([next_distribution(other, found.order[:1], temperature=1.0) for found in lists])
    actions = np.array([found.order[1] for found in lists])
    feedback = LoggedFeedback(
        actions=actions,
        rewards=(actions == 2).astype(float),
        propensities=np.array([found.propensities[1] for found in lists]),
        num_actions=4,
    )
    truth = sum(
        chance_of((first,), 0.7, 0.2) * next_distribution(other, (first,), temperature=1.0)[2] for first in range(4)
    )
    for answer in evaluate_policy(feedback, policy, estimators=["ips", "snips"]).values():
        assert abs(answer.value - truth) < 4 * answer.standard_error
        assert answer.warnings == ()
