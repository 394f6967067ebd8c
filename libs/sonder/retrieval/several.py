"""Candidates from several queries a user, in turns: interests and the long-term vector share one budget.

Shapes: U users, Q queries in all, K budget, I items, D width.
Rule: the r-th nearest item of a query of weight w has the turn r / w; a user's candidates are those of the earliest
turns, each item once, at its first one. So a query of twice the weight gives twice the candidates, what one query has
found already is no other's candidate, and a weak query still gives its nearest. Ties: heavier query, then lower index.
Source: weighted fair queueing over lists; ranks, because scores of different queries are not on one scale.
Popularity counts for some queries only if it is one more coordinate of items and queries, at 0 in the others.
Limits: a search with the budget as k for each query; K of them are enough, whatever the others give.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sonder.history.timelines import Timelines
from sonder.retrieval.approximate import VectorIndex
from sonder.retrieval.exact import top_items

LONG_TERM_SHARE = 0.75  # chosen on validation time, benchmarks/interest-retrieval_2026-11-23.md


@dataclass(frozen=True)
class Queries:
    """Several weighted vectors for each user, in any order; a user may have none."""

    users_Q: NDArray[np.int64]  # row of the user of each
    vectors_QD: NDArray[np.float32]
    weights_Q: NDArray[np.float64]  # above 0; only ratios within a user matter

    def beside(self, vectors_UD: NDArray[np.float32], share: float = LONG_TERM_SHARE) -> Queries:
        """These, and one vector for each user that gets `share` of the turns; all of them where a user has no other.

        A vector of zeros knows nothing and asks nothing.
        """
        if not 0 < share < 1:
            raise ValueError(f"share is {share}, expected between 0 and 1")
        known = np.flatnonzero(np.any(vectors_UD != 0, axis=1))
        totals_U = np.bincount(self.users_Q, self.weights_Q, minlength=len(vectors_UD))
        return Queries(
            np.concatenate([self.users_Q, known]),
            np.concatenate([self.vectors_QD, vectors_UD[known]]),
            np.concatenate([(1 - share) * self.weights_Q / totals_U[self.users_Q], np.full(len(known), share)]),
        )


def several_items(
    queries: Queries,
    num_users: int,
    items: NDArray[np.float32] | VectorIndex,
    budget: int,
    *,
    bias_I: NDArray[np.float32] | None = None,
    allowed_I: NDArray[np.bool_] | None = None,
    exclude: Timelines | None = None,
) -> NDArray[np.int32]:
    """Candidates of each user -> item_index int32 [U, budget], earliest turn first, -1 where none is left.

    `items` [I, D], or an index over them, which has no `bias_I`. `bias_I` and `allowed_I` as in `exact.top_items`;
    `exclude` holds one history per user.
    """
    if not (queries.weights_Q > 0).all():
        raise ValueError("a query without weight: expected weights above 0")
    if exclude is not None and exclude.num_users != num_users:
        raise ValueError(f"{exclude.num_users} histories to exclude, expected one for each of {num_users} users")
    had = None if exclude is None else exclude.take(queries.users_Q)
    if isinstance(items, VectorIndex):
        if bias_I is not None:
            raise ValueError("bias_I beside an index: expected the bias as one more coordinate of its vectors")
        found_QK, _ = items.search(queries.vectors_QD, budget, allowed_N=allowed_I, exclude=had)
    else:
        found_QK, _ = top_items(queries.vectors_QD, items, budget, bias_I=bias_I, allowed_I=allowed_I, exclude=had)
    return in_turns(found_QK, queries.users_Q, queries.weights_Q, num_users, budget)


def in_turns(
    found_QK: NDArray[np.int32],
    users_Q: NDArray[np.int64],
    weights_Q: NDArray[np.float64],
    num_users: int,
    budget: int,
) -> NDArray[np.int32]:
    """Merge the lists of each user's queries, nearest first and -1 where a list has ended -> int32 [U, budget]."""
    if budget < 1:
        raise ValueError(f"budget is {budget}, expected at least 1")
    is_found = found_QK >= 0
    query, place = np.nonzero(is_found)
    item, user, weight = found_QK[is_found], users_Q[query], weights_Q[query]
    order = np.lexsort((item, -weight, (place + 1) / weight, user))
    user, item = user[order], item[order]
    width = int(item.max(initial=0)) + 1
    first = np.sort(np.unique(user * width + item, return_index=True)[1])
    user, item = user[first], item[first]
    taken = np.arange(len(user)) - np.searchsorted(user, user)
    candidates = np.full((num_users, budget), -1, dtype=np.int32)
    within = taken < budget
    candidates[user[within], taken[within]] = item[within]
    return candidates
