"""Item-kNN: what goes together with what the user had. The baseline that shames many published models.

Shapes: U users, I items, N neighbours kept of each item.
similarity   cosine of two columns of the binary user x item matrix of wanted events, the N best of each item
score(i)     sum over the user's items j of weight(j) x similarity(j, i), where i is among j's neighbours;
             weight(j) is 1, or halves with every `half_life_events` newer wanted events
Self         where a log repeats (groceries), what a user had is the best guess at what he buys next: similarity 1 to
             itself is kept. Where nothing ever repeats it fills the list with certain misses. Both are in the grid.
Ties         by popularity before the cutoff; an item without any score follows in that order, so lists are full.
Source: Sarwar et al. 2001; the settings are chosen on the validation split (evaluation.tuning).
Limits: a user's newest MAX_EVENTS wanted events are read. Memory: 8 bytes x I x N (400 MB for 100,000 items at
N = 500) and a few chunks of scores; the user x item and item x item matrices are never dense.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse

from sonder.evaluation.baselines import popularity_order
from sonder.history.timelines import Timelines
from sonder.history.vocabulary import Vocabulary
from sonder.retrieval.exact import chunks, mask_history
from sonder.retrieval.selection import select_top

MAX_EVENTS = 1_000
NEIGHBOURS = (20, 100, 500)
HALF_LIVES_EVENTS: tuple[float | None, ...] = (None, 10.0, 2.0)


@dataclass(frozen=True)
class KnnSettings:
    neighbours: int = 100
    half_life_events: float | None = None
    keeps_self: bool = True

    @classmethod
    def grid(cls, *, with_self: tuple[bool, ...]) -> list[KnnSettings]:
        return [cls(n, h, s) for n in NEIGHBOURS for h in HALF_LIVES_EVENTS for s in with_self]


@dataclass(frozen=True)
class ItemKnn:
    """Neighbours of every item, in popularity order: column c is the item `order_I[c]`."""

    vocabulary: Vocabulary
    order_I: NDArray[np.int64]
    neighbours_IN: NDArray[np.int32]  # -1 where an item has fewer
    similarities_IN: NDArray[np.float32]
    settings: KnnSettings = KnnSettings()

    @classmethod
    def fit(cls, history: Timelines, vocabulary: Vocabulary, num_neighbours: int = max(NEIGHBOURS)) -> ItemKnn:
        """Learn the neighbours from the wanted events of a history; `with_settings` then reads fewer of them."""
        order_I = popularity_order(history, vocabulary, window_days=None)
        matrix_UI = _user_items(_wanted(history, vocabulary, order_I), vocabulary.num_items, None)
        neighbours, similarities = _neighbours(matrix_UI, min(num_neighbours, vocabulary.num_items))
        return cls(vocabulary, order_I, neighbours, similarities)

    def with_settings(self, settings: KnnSettings) -> ItemKnn:
        return replace(self, settings=settings)

    def top(self, history: Timelines, k: int, *, exclude_seen: bool) -> NDArray[np.int32]:
        """item_index int32 [U, k]."""
        num_items = self.vocabulary.num_items
        similarity_II = self._similarity()
        wanted = _wanted(history, self.vocabulary, self.order_I)
        weights_UI = _user_items(wanted, num_items, self.settings.half_life_events)
        seen = replace(history, items=_in_order(history.items, self.order_I))
        columns = np.full((history.num_users, k), -1, dtype=np.int32)
        for start, stop in chunks(history.num_users, num_items):
            scores = torch.from_numpy((weights_UI[start:stop] @ similarity_II).toarray())
            if exclude_seen:
                mask_history(scores, seen, start, stop)
            columns[start:stop], _ = select_top(scores, k)
        return np.where(columns >= 0, self.order_I[columns], -1).astype(np.int32)

    def _similarity(self) -> sparse.csr_array:
        """[I, I], the settings' number of neighbours a row."""
        neighbours = self.neighbours_IN[:, : self.settings.neighbours]
        is_real = neighbours >= 0
        indptr = np.concatenate(([0], np.cumsum(is_real.sum(axis=1))))
        values = self.similarities_IN[:, : self.settings.neighbours][is_real]
        shape = (len(neighbours), len(neighbours))
        similarity = sparse.csr_array((values, neighbours[is_real], indptr), shape=shape)
        if not self.settings.keeps_self:
            return similarity
        return sparse.csr_array(similarity + sparse.eye_array(len(neighbours), dtype=np.float32, format="csr"))


def _in_order(items_N: NDArray[np.int32], order_I: NDArray[np.int64]) -> NDArray[np.int32]:
    """item_index -> column in popularity order; -1 stays -1."""
    column_I = np.empty(len(order_I) + 1, dtype=np.int32)
    column_I[order_I] = np.arange(len(order_I))
    column_I[-1] = -1
    return column_I[items_N]


def _wanted(history: Timelines, vocabulary: Vocabulary, order_I: NDArray[np.int64]) -> Timelines:
    """The newest wanted events of each user, items renamed to columns."""
    is_wanted = (vocabulary.weight_of(history.actions) > 0) & (history.items >= 0)
    wanted = history.keep(is_wanted).last(MAX_EVENTS)
    return replace(wanted, items=_in_order(wanted.items, order_I))


def _user_items(wanted: Timelines, num_items: int, half_life_events: float | None) -> sparse.csr_array:
    """Sparse [U, I]: 1, or the decayed weight of the newest event, for each distinct item of a user."""
    keys = wanted.user_rows * num_items + wanted.items
    distinct, newest = np.unique(keys[::-1], return_index=True)  # the first of the reversed events is the newest
    ages = wanted.ages[::-1][newest]
    weights = np.ones(len(distinct)) if half_life_events is None else np.exp2(-ages / half_life_events)
    rows, columns = np.divmod(distinct, num_items)
    indptr = np.concatenate(([0], np.cumsum(np.bincount(rows, minlength=wanted.num_users))))
    return sparse.csr_array((weights.astype(np.float32), columns, indptr), shape=(wanted.num_users, num_items))


def _neighbours(matrix_UI: sparse.csr_array, num: int) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """The most similar items of each item, itself left out -> columns int32 [I, num], cosines float32 [I, num]."""
    num_items = matrix_UI.shape[1]
    users_of_I = np.bincount(matrix_UI.indices, minlength=num_items)
    scale = sparse.diags_array(1 / np.sqrt(np.maximum(users_of_I, 1)).astype(np.float32))
    normal_UI = sparse.csr_array(matrix_UI @ scale)
    normal_IU = sparse.csr_array(normal_UI.T)
    neighbours = np.full((num_items, num), -1, dtype=np.int32)
    similarities = np.zeros((num_items, num), dtype=np.float32)
    for start, stop in chunks(num_items, num_items):
        block = sparse.csr_array(normal_IU[start:stop] @ normal_UI)
        block.sort_indices()
        lengths = np.diff(block.indptr)
        is_real = np.arange(lengths.max(initial=0)) < lengths[:, None]
        rows = np.repeat(np.arange(start, stop), lengths)
        padded = np.full(is_real.shape, -np.inf, dtype=np.float32)
        padded[is_real] = np.where(block.indices == rows, -np.inf, block.data)
        places, values = select_top(torch.from_numpy(padded), num)
        found = places >= 0
        at = (block.indptr[:-1, None] + places)[found]
        neighbours[start:stop][found] = block.indices[at]
        similarities[start:stop][found] = values[found]
    return neighbours, similarities
