"""A world whose policies have a known value: contexts from a finite population, so that the truth is a sum.

Shapes: M contexts of the population, F features, A actions, L positions, N rounds, U users.
A user has one context, an eagerness of their own (rewards are 0.2 or 1.8 times as likely) and several rounds.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import expit, softmax

from sonder.experiments.logged_feedback import Floats, LoggedFeedback

NUM_CONTEXTS, NUM_FEATURES, NUM_ACTIONS, NUM_POSITIONS = 300, 3, 6, 2
ROUNDS_PER_USER = 4


@dataclass(frozen=True)
class World:
    contexts_MF: Floats
    rewards_MAL: Floats  # expected
    logging_MAL: Floats
    target_MAL: Floats

    @classmethod
    def of(cls, seed: int = 5, *, distance: float = 1.0, exploration: float = 0.5) -> World:
        """`distance` scales how much the evaluation policy prefers some actions; `exploration` is the share of its
        choices that the logging policy draws uniformly, which keeps weights below A / exploration."""
        rng = np.random.default_rng(seed)
        contexts = rng.normal(size=(NUM_CONTEXTS, NUM_FEATURES))
        tastes = rng.normal(size=(NUM_FEATURES, NUM_ACTIONS))
        places = np.array([0.0, -0.5])
        scores = contexts @ tastes
        rewards = expit(-1.2 + 0.6 * scores[:, :, None] + places) / 1.8
        shy = softmax(0.5 * contexts @ rng.normal(size=tastes.shape), axis=1)
        keen = softmax(distance * scores, axis=1)
        shown = np.stack([shy, shy[:, ::-1]], axis=2)
        logging = (1 - exploration) * shown + exploration / NUM_ACTIONS
        target = np.stack([keen, 0.5 * keen + 0.5 / NUM_ACTIONS], axis=2)
        return cls(contexts, rewards, logging, target)

    @property
    def value(self) -> float:
        """Of the evaluation policy; both positions are shown equally often."""
        return float((self.target_MAL * self.rewards_MAL).sum(axis=1).mean())

    def log(self, num_users: int, seed: int, *, with_policy: bool = False) -> tuple[LoggedFeedback, Floats, Floats]:
        """A log, the evaluation policy at its rounds [N, A, L] and the true expected rewards at their places [N, A]."""
        rng = np.random.default_rng(seed)
        users = np.repeat(np.arange(num_users), ROUNDS_PER_USER)
        which = rng.integers(NUM_CONTEXTS, size=num_users)[users]
        eagerness = rng.choice([0.2, 1.8], size=num_users)[users]
        places = rng.integers(NUM_POSITIONS, size=len(users))
        chances = self.logging_MAL[which, :, places]
        actions = (rng.random(len(users))[:, None] > np.cumsum(chances, axis=1)[:, :-1]).sum(axis=1)
        taken = np.arange(len(users)), actions
        expected = self.rewards_MAL[which, :, places]
        rewards = (rng.random(len(users)) < expected[taken] * eagerness).astype(float)
        logging = self.logging_MAL[which] if with_policy else None
        feedback = LoggedFeedback(
            actions, rewards, chances[taken], NUM_ACTIONS, places, self.contexts_MF[which], users, logging
        )
        return feedback, self.target_MAL[which], expected
