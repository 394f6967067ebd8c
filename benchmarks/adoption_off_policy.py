"""How far off-policy estimates are from the truth, where the truth is known: a new ranker on the simulated users.

A round shows one of ACTIONS items to a user who comes; the reward is a click. The logging policy draws from a softmax
over what a noisy reading of the user's departments says, with a uniform part; the new policy reads with less noise and
draws more sharply. The true value of the new policy is the mean over the rounds' users of its chances times the true
click chances: exact, with the contexts as they are. Each repetition draws the rounds' users, items and clicks anew.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax

from benchmarks.adoption_simulation import rate
from sonder.events.synthetic.choices import choice_chances
from sonder.events.synthetic.taxonomy import LEAVES_PER_DEPARTMENT, NUM_LEAVES
from sonder.events.synthetic.visits import World
from sonder.experiments.logged_feedback import LoggedFeedback
from sonder.experiments.off_policy import ESTIMATORS, evaluate_policy

ACTIONS = 24
NUM_DEPARTMENTS = NUM_LEAVES // LEAVES_PER_DEPARTMENT
EXPLORED = 0.2  # uniform part of the logging policy
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Rankers:
    """Both policies [U, A], what they read of each user [U, F], and the true chance of a click [U, A]."""

    logging: Floats
    new: Floats
    contexts: Floats
    clicks: Floats


def rankers(world: World, seed: int) -> Rankers:
    """Items of the most popular leaves, a policy that has been logged and one that is asked about."""
    rng = np.random.default_rng(seed)
    num_users = world.people.num_users
    leaves = np.argsort(-world.catalogue.leaf_weight)[:ACTIONS]
    items = world.catalogue.by_leaf[-1, leaves, 0]
    everyone, day = np.arange(num_users), np.full(num_users, world.config.num_days)
    clicks = choice_chances(world, everyone, day, np.tile(items, (num_users, 1))).click
    liked = world.people.leaves_at(day, everyone)
    department = np.where(liked >= 0, liked // LEAVES_PER_DEPARTMENT, NUM_DEPARTMENTS)
    counts = (department[:, :, None] == np.arange(NUM_DEPARTMENTS)).sum(axis=1).astype(np.float64)
    contexts = counts + 0.5 * rng.standard_normal(counts.shape)
    of_action = leaves // LEAVES_PER_DEPARTMENT
    coarse = (contexts + 0.5 * rng.standard_normal(counts.shape))[:, of_action]
    logging = (1 - EXPLORED) * softmax(coarse, axis=1) + EXPLORED / ACTIONS
    return Rankers(logging, softmax(2 * contexts[:, of_action], axis=1), contexts, clicks)


def errors(world: World, *, num_rounds: int, repetitions: int, seed: int) -> dict[str, Any]:
    """Relative error of each estimator: bias, root mean square, and how often its interval holds the truth."""
    known = rankers(world, seed)
    found: dict[str, list[tuple[float, bool]]] = {name: [] for name in (*ESTIMATORS, "mean of the log")}
    values = []
    for repetition in range(repetitions):
        rng = np.random.default_rng([seed, repetition])
        user = rng.integers(0, world.people.num_users, num_rounds)
        logging, new = known.logging[user], known.new[user]
        drawn = rng.random(num_rounds)[:, None]
        action = np.minimum((drawn >= np.cumsum(logging, axis=1)).sum(axis=1), ACTIONS - 1)
        rounds = np.arange(num_rounds)
        reward = (rng.random(num_rounds) < known.clicks[user, action]).astype(np.float64)
        feedback = LoggedFeedback(
            actions=action,
            rewards=reward,
            propensities=logging[rounds, action],
            num_actions=ACTIONS,
            contexts=known.contexts[user],
            users=user,
            logging_policy=logging,
        )
        truth = float((new * known.clicks[user]).sum(axis=1).mean())
        values.append(truth)
        for name, told in evaluate_policy(feedback, new, num_resamples=200, seed=repetition).items():
            low, high = told.interval
            found[name].append((told.value / truth - 1, low <= truth <= high))
        found["mean of the log"].append((float(reward.mean()) / truth - 1, False))
    return {
        "rounds": num_rounds,
        "repetitions": repetitions,
        "true_value": round(float(np.mean(values)), 5),
        "estimators": {name: _told(rows, name in ESTIMATORS) for name, rows in found.items()},
    }


def _told(rows: list[tuple[float, bool]], has_interval: bool) -> dict[str, Any]:
    relative = np.array([error for error, _ in rows])
    told = {
        "relative_rmse": round(float(np.sqrt(np.mean(relative**2))), 4),
        "relative_bias": round(float(relative.mean()), 4),
        "bias_error": round(float(relative.std(ddof=1) / np.sqrt(len(relative))), 4) if len(relative) > 1 else None,
    }
    return told | ({"coverage": rate(held for _, held in rows)} if has_interval else {})
