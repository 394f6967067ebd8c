"""What a policy showed, how likely it was to show it, and what came of it: the log that off-policy evaluation reads.

Shapes: N rounds, A actions, L positions of a list, F features of a context.
A round is one shown item at one place. Its propensity is the chance, just before the draw, with which the logging
policy put this very item at this very place: logged by whoever drew, never estimated afterwards.
Lists: what is supported is a policy by position, as in the Open Bandit Dataset (Saito, Aihara, Matsutani & Narita,
2021): the rounds of a list are rows with their positions, each with the chance of its item at its position, and the
value is the mean reward of a shown item. That is the value of a whole list only if an item's reward depends on the
item and its place and not on its neighbours (the item-position model of Li et al., Offline Evaluation of Ranking
Policies with Click Models, KDD 2018). Not supported: propensities of whole lists, cascades, rewards of a list as one
(pseudo-inverse estimators). Rows of one list depend on one another: give `users`, and they are drawn together.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sonder.core.errors import DataError

__all__ = ["Floats", "Indices", "LoggedFeedback", "policy_at_positions"]

Floats = NDArray[np.float64]
Indices = NDArray[np.int64]

TOLERANCE = 1e-6  # of a distribution's sum, and of a propensity against the logging policy it came from


@dataclass(frozen=True)
class LoggedFeedback:
    """N rounds of a logging policy. What cannot be a log raises DataError; arrays that do not fit, ValueError.

    `logging_policy` is the whole distribution that the action was drawn from, [N, A] or [N, A, L], when it was
    logged: support is then known instead of guessed from which actions occur.
    """

    actions: Indices  # [N] in [0, num_actions)
    rewards: Floats  # [N]
    propensities: Floats  # [N] in (0, 1]
    num_actions: int
    positions: Indices | None = None  # [N] from 0; None means lists of one
    contexts: Floats | None = None  # [N, F]
    users: Indices | None = None  # [N] any integers; None means every round another user
    logging_policy: Floats | None = None

    def __post_init__(self) -> None:
        self._check_lengths()
        _refuse_propensities(self.propensities)
        if not np.isfinite(self.rewards).all():
            raise DataError(
                f"{int((~np.isfinite(self.rewards)).sum()):,} rewards of {len(self):,} are missing or infinite",
                expected="a number for every round, 0 where nothing happened",
                do="Log the absence of a reward as 0, or leave out rounds whose outcome is not known yet",
            )
        for name, indices, end in (("actions", self.actions, self.num_actions), ("positions", self.positions, None)):
            if indices is not None and (indices.min() < 0 or (end is not None and indices.max() >= end)):
                raise DataError(
                    f"{name} run from {indices.min()} to {indices.max()}",
                    expected=f"indices from 0{f' to {end - 1}' if end is not None else ''}",
                    do="Map items to dense indices with one table for the log and the new policy",
                )
        if self.logging_policy is not None:
            self._check_logging_policy(policy_at_positions(self.logging_policy, self))

    def __len__(self) -> int:
        return len(self.actions)

    @property
    def num_positions(self) -> int:
        return 1 if self.positions is None else int(self.positions.max()) + 1

    @property
    def places(self) -> Indices:
        """[N] positions, 0 for lists of one."""
        return np.zeros(len(self), dtype=np.int64) if self.positions is None else self.positions

    @property
    def user_codes(self) -> Indices:
        """[N] users as 0 … U - 1."""
        if self.users is None:
            return np.arange(len(self))
        return np.unique(self.users, return_inverse=True)[1].astype(np.int64)

    def _check_lengths(self) -> None:
        if not len(self.actions):
            raise ValueError("no rounds: off-policy evaluation needs a log")
        for name in ("rewards", "propensities", "positions", "contexts", "users"):
            values = getattr(self, name)
            if values is not None and len(values) != len(self.actions):
                raise ValueError(f"{len(values):,} {name} for {len(self.actions):,} actions")

    def _check_logging_policy(self, policy_NA: Floats) -> None:
        told = policy_NA[np.arange(len(self)), self.actions]
        wrong = np.abs(told - self.propensities) > TOLERANCE
        if wrong.any():
            first = int(np.argmax(wrong))
            raise DataError(
                f"{int(wrong.sum()):,} propensities differ from the logging policy; round {first} logged "
                f"{self.propensities[first]:g} where its distribution says {told[first]:g}",
                expected="the chance of the action that was taken, from the distribution it was drawn from",
                do="Log both in one place, after every filter that can still change the draw",
            )


def policy_at_positions(policy: Floats, feedback: LoggedFeedback) -> Floats:
    """A policy's distribution over the actions at each round's own position -> [N, A].

    `policy` is [N, A] (the same at every position) or [N, A, L]; a first axis of 1 is a policy without context.
    Rows that are no distribution raise DataError.
    """
    num_rounds = len(feedback)
    if policy.ndim not in (2, 3) or policy.shape[0] not in (1, num_rounds) or policy.shape[1] != feedback.num_actions:
        raise ValueError(
            f"a policy of shape {policy.shape} for {num_rounds:,} rounds and {feedback.num_actions} actions: "
            "it must be [N or 1, A] or [N or 1, A, L]"
        )
    if policy.ndim == 3 and policy.shape[2] < feedback.num_positions:
        raise ValueError(f"a policy of {policy.shape[2]} positions for a log of {feedback.num_positions}")
    _refuse_distribution(policy)
    if policy.ndim == 2:
        return np.broadcast_to(policy, (num_rounds, policy.shape[1]))
    if policy.shape[0] == 1:
        return np.ascontiguousarray(policy[0].T)[feedback.places]
    return policy[np.arange(num_rounds), :, feedback.places]


def _refuse_propensities(propensities_N: Floats) -> None:
    kinds = {
        "missing": np.isnan(propensities_N),
        "0 or below": propensities_N <= 0,
        "above 1": propensities_N > 1,
    }
    found = [f"{int(wrong.sum()):,} {kind}" for kind, wrong in kinds.items() if wrong.any()]
    if found:
        raise DataError(
            f"of {len(propensities_N):,} propensities {' and '.join(found)}",
            expected="the chance, above 0 and at most 1, with which the logged action was drawn",
            do="Log the propensity where the action is drawn; a round without one cannot be used, and leaving out "
            "such rounds changes the question unless they are missing at random",
        )


def _refuse_distribution(policy: Floats) -> None:
    sums = policy.sum(axis=1)
    # Written so that NaN is wrong: it fails both comparisons.
    wrong = ~((np.abs(sums - 1) <= TOLERANCE) & (policy.min(axis=1) >= 0))
    if wrong.any():
        first = tuple(int(axis[0]) for axis in np.nonzero(wrong))
        raise DataError(
            f"{int(wrong.sum()):,} of {wrong.size:,} rows of a policy are no distributions; row {first[0]} sums to "
            f"{sums[first]:g}, its least probability is {policy.min(axis=1)[first]:g}",
            expected="probabilities of the actions, none below 0, that sum to 1 in each round and position",
            do="Normalise over the actions that the policy may take, after its filters",
        )
