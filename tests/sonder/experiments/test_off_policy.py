"""Every estimator against a world whose truth is a sum."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from benchmarks.logged_world import World
from sonder.experiments.logged_feedback import Floats, LoggedFeedback
from sonder.experiments.off_policy import Estimator, PolicyValue, evaluate_policy

WEIGHTED: tuple[Estimator, ...] = ("ips", "clipped_ips", "snips", "dr")


def tiny(**changes: object) -> LoggedFeedback:
    """Four rounds of a fair coin between two actions."""
    feedback = LoggedFeedback(
        actions=np.array([0, 0, 1, 1]),
        rewards=np.array([1.0, 0.0, 1.0, 1.0]),
        propensities=np.full(4, 0.5),
        num_actions=2,
    )
    return replace(feedback, **changes)  # type: ignore[arg-type]


def values(answers: dict[Estimator, PolicyValue]) -> dict[Estimator, float]:
    return {name: answer.value for name, answer in answers.items()}


def test_the_estimators_of_four_rounds_are_what_one_computes_by_hand() -> None:
    policy = np.array([[0.2, 0.8]])
    predicted = np.tile([0.4, 0.6], (4, 1))
    found = values(evaluate_policy(tiny(), policy, expected_rewards=predicted, clip=1.0, tau=1.0))
    # Weights 0.4 0.4 1.6 1.6; direct 0.2 * 0.4 + 0.8 * 0.6 = 0.56.
    assert found["ips"] == pytest.approx((0.4 + 1.6 + 1.6) / 4)
    assert found["clipped_ips"] == pytest.approx((0.4 + 1 + 1) / 4)
    assert found["snips"] == pytest.approx(3.6 / 4.0)
    assert found["dm"] == pytest.approx(0.56)
    assert found["dr"] == pytest.approx(0.56 + (0.4 * 0.6 - 0.4 * 0.4 + 1.6 * 0.4 * 2) / 4)
    assert found["switch_dr"] == pytest.approx(0.56 + (0.4 * 0.6 - 0.4 * 0.4) / 4)


def test_the_logging_policy_itself_has_the_value_of_its_own_rewards() -> None:
    answers = evaluate_policy(tiny(), np.array([[0.5, 0.5]]), estimators=["ips", "snips"])
    assert values(answers) == pytest.approx({"ips": 0.75, "snips": 0.75})
    assert answers["ips"].effective_rounds == pytest.approx(4)


def test_a_policy_by_position_is_read_at_the_position_of_each_round() -> None:
    policy = np.zeros((1, 2, 2))
    policy[0, 0, 0] = policy[0, 1, 1] = 1
    feedback = tiny(positions=np.array([0, 1, 0, 1]))
    # Round 0 (action 0 at 0) and round 3 (action 1 at 1) are what the policy does: weight 2 each.
    assert evaluate_policy(feedback, policy, estimators=["ips"])["ips"].value == pytest.approx(1.0)


def test_switch_dr_ends_in_the_direct_method_and_in_doubly_robust() -> None:
    feedback, policy, expected = World.of().log(200, 1)
    predicted = expected * 0.8
    found = values(evaluate_policy(feedback, policy, expected_rewards=predicted, tau=0.0, num_resamples=10))
    assert found["switch_dr"] == pytest.approx(found["dm"])
    found = values(evaluate_policy(feedback, policy, expected_rewards=predicted, tau=np.inf, num_resamples=10))
    assert found["switch_dr"] == pytest.approx(found["dr"])


def runs(
    world: World, num_runs: int, num_users: int, *, model_error: float | None = None, **options: object
) -> dict[str, Floats]:
    """Per estimator and run: value, standard error, is the truth in the normal and in the bootstrap interval [R, 4].

    The reward model is cross-fitted, or the truth times 1 + `model_error`.
    """
    rows: dict[str, list[list[float]]] = {}
    for seed in range(num_runs):
        feedback, policy, expected = world.log(num_users, seed)
        predicted = None if model_error is None else expected * (1 + model_error)
        answers = evaluate_policy(feedback, policy, seed=seed, expected_rewards=predicted, **options)  # type: ignore[arg-type]
        for name, answer in answers.items():
            inside = [low <= world.value <= high for low, high in (answer.interval, answer.bootstrap_interval)]
            rows.setdefault(name, []).append([answer.value, answer.standard_error, *inside])
    return {name: np.array(row, dtype=float) for name, row in rows.items()}


def is_near(found: float, truth: float, deviation: float, num_runs: int) -> bool:
    """Within four standard errors of a mean of runs: chance goes beyond in 6 of 100,000, of 12 runs in 2 of 1,000."""
    return abs(found - truth) < 4 * deviation / num_runs**0.5


def test_what_is_unbiased_in_theory_meets_the_truth_in_a_few_runs() -> None:
    world = World.of(distance=0.6)
    found = runs(world, 12, 200, num_resamples=50)
    for name in ("ips", "dr"):
        assert is_near(found[name][:, 0].mean(), world.value, found[name][:, 0].std(ddof=1), 12), name


def test_a_good_model_makes_doubly_robust_surer_than_ips() -> None:
    """Rewards are amounts near their expectation, so that what a model can explain is most of the spread."""
    world, rng = World.of(distance=1.0), np.random.default_rng(0)
    for seed in range(5):
        feedback, policy, expected = world.log(500, seed)
        amounts = expected[np.arange(len(feedback)), feedback.actions] + rng.normal(0, 0.05, len(feedback))
        found = evaluate_policy(
            replace(feedback, rewards=amounts), policy, estimators=["ips", "snips", "dr"], num_resamples=10
        )
        assert found["dr"].standard_error < 0.8 * found["ips"].standard_error


def test_a_wrong_model_ruins_the_direct_method_and_not_the_doubly_robust_one() -> None:
    world = World.of(distance=0.6)
    direct, robust = [], []
    for seed in range(30):
        feedback, policy, expected = world.log(400, seed)
        found = evaluate_policy(
            feedback, policy, expected_rewards=1 - expected, estimators=["dm", "dr"], num_resamples=2
        )
        direct.append(found["dm"].value)
        robust.append(found["dr"].value)
    assert is_near(float(np.mean(robust)), world.value, float(np.std(robust, ddof=1)), 30)
    assert abs(np.mean(direct) - world.value) > 0.2


def test_rounds_of_one_user_say_less_than_rounds_of_many() -> None:
    """Four copies of every round, told as one user's, leave the error where it was; told as many users', halve it."""
    feedback, policy, _ = World.of().log(200, 3)
    policy_NA = policy[np.arange(len(feedback)), :, feedback.places]
    alone = replace(feedback, users=np.arange(len(feedback)), positions=None)
    copies = np.repeat(np.arange(len(alone)), 4)
    fourfold = replace(
        alone, actions=alone.actions[copies], rewards=alone.rewards[copies], propensities=alone.propensities[copies],
        users=alone.users[copies] if alone.users is not None else None, contexts=None,
    )  # fmt: skip
    errors = [
        evaluate_policy(log, rows, estimators=["snips"], num_resamples=10)["snips"].standard_error
        for log, rows in (
            (alone, policy_NA),
            (fourfold, policy_NA[copies]),
            (replace(fourfold, users=None), policy_NA[copies]),
        )
    ]
    assert errors[1] == pytest.approx(errors[0])
    assert errors[2] == pytest.approx(errors[0] / 2, rel=0.01)


def test_the_same_seed_gives_the_same_answer_and_the_order_of_rounds_gives_no_other_value() -> None:
    feedback, policy, expected = World.of().log(100, 4)
    first, again = (evaluate_policy(feedback, policy, seed=3, num_resamples=50) for _ in range(2))
    assert first == again
    order = np.random.default_rng(0).permutation(len(feedback))
    arrays = {
        name: getattr(feedback, name)[order]
        for name in ("actions", "rewards", "propensities", "positions", "contexts", "users")
    }
    shuffled = evaluate_policy(
        replace(feedback, **arrays), policy[order], expected_rewards=expected[order], num_resamples=2
    )
    straight = evaluate_policy(feedback, policy, expected_rewards=expected, num_resamples=2)
    assert values(shuffled) == pytest.approx(values(straight))


def test_a_policy_that_the_log_never_followed_has_no_self_normalised_value() -> None:
    feedback = tiny(actions=np.zeros(4, dtype=np.int64))
    found = evaluate_policy(feedback, np.array([[0.0, 1.0]]), estimators=["ips", "snips"])
    assert np.isnan(found["snips"].value)
    assert found["ips"].value == 0
    assert found["ips"].unsupported_share == 1
    assert any("100.0% of the new policy's choices were never seen" in text for text in found["ips"].warnings)


def test_an_estimator_that_does_not_exist_is_named() -> None:
    with pytest.raises(ValueError, match="magic"):
        evaluate_policy(tiny(), np.array([[0.5, 0.5]]), estimators=["magic"])  # type: ignore[list-item]


@pytest.mark.parametrize("predicted", [np.zeros((4, 3)), np.full((4, 2), np.nan)])
def test_expected_rewards_that_do_not_fit_are_refused(predicted: Floats) -> None:
    with pytest.raises(ValueError, match="expected rewards"):
        evaluate_policy(tiny(), np.array([[0.5, 0.5]]), expected_rewards=predicted)


@pytest.mark.slow
def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    """400 logs: a true 95 % interval misses more than 8.3 % of them in 1 of 1,000 tries (binomial)."""
    world = World.of(distance=0.6)
    found = runs(world, 400, 400, model_error=-0.2, num_resamples=200, estimators=WEIGHTED)
    for name in WEIGHTED:
        rows = found[name]
        assert is_near(rows[:, 0].mean(), world.value, rows[:, 0].std(ddof=1), 400), name
        assert rows[:, 1].mean() == pytest.approx(rows[:, 0].std(ddof=1), rel=0.12), name
        assert rows[:, 2:].mean(axis=0).min() > 0.917, name
        assert rows[:, 2:].mean(axis=0).max() < 0.983, name
    assert found["dr"][:, 0].std() < found["ips"][:, 0].std()


@pytest.mark.slow
def test_ignoring_users_makes_intervals_too_narrow() -> None:
    """Rewards of a user share their eagerness: the error without users is smaller than the spread of the estimates."""
    world = World.of(distance=0.0)
    spread, told, told_without = [], [], []
    for seed in range(300):
        feedback, policy, _ = world.log(200, seed)
        options = {"estimators": ["snips"], "num_resamples": 2}
        answer = evaluate_policy(feedback, policy, **options)["snips"]  # type: ignore[arg-type]
        alone = evaluate_policy(replace(feedback, users=None), policy, **options)["snips"]  # type: ignore[arg-type]
        spread.append(answer.value)
        told.append(answer.standard_error)
        told_without.append(alone.standard_error)
    assert np.mean(told) == pytest.approx(np.std(spread), rel=0.12)
    assert np.mean(told_without) < 0.9 * np.mean(told)
