"""What serving answers where the encoder has no answer: popular items, as a release of that moment would list them.

Whom     users without a vector (the zero vector), users without any history, and users whose list is empty
Order    the item table of a log that ends at the cutoff (history.item_table): falling number of events of any action,
         then item_id. Recounted here: an item_index of the whole log knows what became popular later.
Limits: the table's first NUM_POPULAR items less the user's own; who has had them all gets nothing. tests/contract
holds this to services.gateway.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from sonder.evaluation.baselines import Popularity
from sonder.evaluation.ranking import Ranker
from sonder.history.timelines import Timelines
from sonder.history.vocabulary import Vocabulary

NUM_POPULAR = 2_000


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


def popular_items(history: Timelines, vocabulary: Vocabulary) -> Popularity:
    """The fallback list at the end of a readable history."""
    counts_I = np.bincount(history.items[history.items >= 0], minlength=vocabulary.num_items)
    place_of_id_I = np.empty(vocabulary.num_items, dtype=np.int64)
    place_of_id_I[pc.sort_indices(vocabulary.item_ids).to_numpy()] = np.arange(vocabulary.num_items)
    return Popularity(np.lexsort((place_of_id_I, -counts_I))[:NUM_POPULAR])
