"""Popularity: the baseline that needs no model, and that wins on a global time split more often than one likes.

Counts the wanted events of the readable history, over all of it or over its last days. The window is chosen on the
validation split (evaluation.tuning), never on the test; under leave_one_out, where every user has a cutoff of his
own and a last week means nothing, all of it counts.
Ties: by the count over the whole history, then by the lower item_index.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sonder.history.cutoffs import end_of_log_us
from sonder.history.timelines import MICROSECONDS_PER_DAY, Timelines
from sonder.history.vocabulary import Vocabulary
from sonder.retrieval.exact import chunks

WINDOWS_DAYS: tuple[int | None, ...] = (None, 30, 7)  # None: all of the history


@dataclass(frozen=True)
class Popularity:
    """The same list for everybody, less what each user has had."""

    order_I: NDArray[np.int64]  # item_index by falling popularity; an item that it leaves out is never recommended

    @classmethod
    def fit(cls, history: Timelines, vocabulary: Vocabulary, *, window_days: int | None) -> Popularity:
        """Count in a window that ends with the newest readable event."""
        return cls(popularity_order(history, vocabulary, window_days=window_days))

    def top(self, history: Timelines, k: int, *, exclude_seen: bool) -> NDArray[np.int32]:
        """item_index int32 [U, k], -1 where a user has had (almost) every item."""
        lists = np.full((history.num_users, k), -1, dtype=np.int32)
        if not exclude_seen:
            lists[:, : len(self.order_I)] = self.order_I[:k]
            return lists
        num_items = 1 + max(self.order_I.max(initial=-1), history.items.max(initial=-1))
        place_I = np.full(num_items, len(self.order_I), dtype=np.int64)
        place_I[self.order_I] = np.arange(len(self.order_I))
        lengths = history.lengths
        for start, stop in chunks(history.num_users, len(self.order_I)):
            # n events rule out n items at most, so the k + n most popular ones hold the answer
            width = min(len(self.order_I), k + int(lengths[start:stop].max(initial=0)))
            items = history.items[history.offsets[start] : history.offsets[stop]]
            rows = np.repeat(np.arange(stop - start), lengths[start:stop])
            known = items >= 0
            rows, places = rows[known], place_I[items[known]]
            is_seen = np.zeros((stop - start, width), dtype=np.bool_)
            is_seen[rows[places < width], places[places < width]] = True
            first = np.argsort(is_seen, axis=1, kind="stable")[:, :k]
            picked = self.order_I[first].astype(np.int32)
            picked[np.take_along_axis(is_seen, first, axis=1)] = -1
            lists[start:stop, : picked.shape[1]] = picked
        return lists


def popularity_order(history: Timelines, vocabulary: Vocabulary, *, window_days: int | None) -> NDArray[np.int64]:
    """item_index by falling number of wanted events in the window -> int64 [I]."""
    is_wanted = (vocabulary.weight_of(history.actions) > 0) & (history.items >= 0)
    all_time = np.bincount(history.items[is_wanted], minlength=vocabulary.num_items)
    if window_days is None:
        return np.argsort(-all_time, kind="stable")
    start_us = end_of_log_us(history) - window_days * MICROSECONDS_PER_DAY
    recent = np.bincount(history.items[is_wanted & (history.times_us >= start_us)], minlength=vocabulary.num_items)
    return np.lexsort((np.arange(vocabulary.num_items), -all_time, -recent))
