"""The encoder as it is served: who gets nothing from it gets popular items (`sonder.retrieval.popular`).

Whom: users without a vector (the zero vector), users without any history, and users whose list is empty.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sonder.evaluation.baselines import Popularity
from sonder.evaluation.ranking import Ranker
from sonder.history.timelines import Timelines


@dataclass(frozen=True)
class WithFallback:
    """A ranker as it is served: a user for whom it has nothing gets the fallback's list, all of it or none."""

    ranker: Ranker
    fallback: Popularity

    def top(self, history: Timelines, k: int, *, exclude_seen: bool) -> NDArray[np.int32]:
        lists = self.ranker.top(history, k, exclude_seen=exclude_seen)
        empty = np.flatnonzero((lists < 0).all(axis=1))
        lists[empty] = self.fallback.top(history.take(empty), k, exclude_seen=exclude_seen)
        return lists
