"""The vectors of one release and the searches over them: what the retrieval deployment asks, without Ray.

Shapes: B users of a micro-batch, I items, U users of the release, D width, k answers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property, lru_cache
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from services.retrieval.everybody import USER_ID_TYPE, read_everybody
from services.warming import sample_batch
from sonder.encoder.artefact import load_encoder, load_popularity
from sonder.events.contract import Col
from sonder.history.timelines import MICROSECONDS_PER_DAY
from sonder.history.vocabulary import Vocabulary
from sonder.profiles.packing import unpack_timelines
from sonder.releases.artefacts import Release
from sonder.retrieval.approximate import SAMPLE, VectorIndex
from sonder.retrieval.diversity import POOL, diversify
from sonder.retrieval.exact import Found
from sonder.retrieval.several import Queries, several_items
from sonder.segments.lookalike import LEAST_SEEDS, MAX_BACKGROUND, fit_lookalike
from sonder.segments.lookalike_ranking import most_alike

Row = TypeVar("Row")
FoundItem = tuple[str, str | None, str | None, float]  # item_id, title, category, score
FoundUser = tuple[str, float]  # user_id, similarity
Interest = tuple[str, float]  # medoid_item_id, weight
Wish = tuple[str | None, float | None, float]  # category, max_age_days, diversity
Find = Callable[[NDArray[np.int64], int, NDArray[np.bool_] | None], Found]  # rows of users, answers, allowed items
NO_WISH: Wish = (None, None, 0.0)
MOST_FILTERS = 64  # kept in memory, one bit map of the items each
_LEAST_WEIGHT = 1e-9  # of an interest beside the others
_SEED = 7  # of what is drawn: the same request gets the same answer


class Nearest:
    """Items and users near a vector, in one release; the item and user vectors are held in memory."""

    def __init__(self, opened: Release) -> None:
        encoder = load_encoder(opened.encoder).with_popularity(load_popularity(opened.items))
        self._items_ID, self._bias_I = encoder.item_vectors, encoder.item_bias
        self._candidates = None if encoder.candidates is None or encoder.candidates.all() else encoder.candidates
        shown = [Col.ITEM_ID, Col.TITLE, Col.CATEGORY, Col.FIRST_SEEN]
        self._catalogue = Vocabulary.load(opened.items).items.select(shown)
        self._as_of_us = opened.manifest.as_of_us
        self._allowed = lru_cache(MOST_FILTERS)(self._find_allowed)
        everybody = read_everybody(opened.profiles, self._items_ID.shape[1])
        self._user_ids, self._cold_ids, self._people = everybody.user_ids, everybody.cold_ids, everybody.people
        self._users_UD = self._people.vectors_ND
        self._users = VectorIndex(self._users_UD, self._users_UD)
        # Popularity is the last coordinate of an item: only the long-term vector of a user asks for it.
        asking = np.random.default_rng(_SEED).permutation(len(self._users_UD))[:SAMPLE]
        asking_QD = _widened(self._users_UD[asking], np.ones(len(asking)))
        self._items = VectorIndex(_widened(self._items_ID, self._bias_I), asking_QD)
        user_ids, timelines = sample_batch(opened.manifest.as_of_us)
        vectors_BD = np.repeat(self._items_ID[:1], len(user_ids), axis=0)
        self.recommend(vectors_BD, timelines, k=10)
        self.similar(user_ids, vectors_BD, k=10)

    def lookalike(self, seed_ids: list[str], size: int, exclude_ids: list[str]) -> dict[str, Any]:
        given = pa.array(seed_ids, USER_ID_TYPE).unique()
        is_seed = pc.is_in(self._user_ids, value_set=given).to_numpy(zero_copy_only=False)
        seeds, others = np.flatnonzero(is_seed), np.flatnonzero(~is_seed)
        num_cold = pc.sum(pc.is_in(given, value_set=self._cold_ids)).as_py()
        counts = {"given": len(given), "used": len(seeds), "cold": num_cold}
        counts["unknown"] = len(given) - len(seeds) - num_cold
        if min(len(seeds), len(others)) < LEAST_SEEDS:
            left_out = {"ranked_users": 0, "held_out_auc": None, "audience": None}
            return {"seeds": counts, "other_users": len(others), **left_out}
        draw = np.random.default_rng(_SEED)
        background = np.sort(draw.choice(others, min(MAX_BACKGROUND, len(others)), replace=False))
        fitted = fit_lookalike(self._people.take(seeds), self._people.take(background), seed=_SEED)
        is_out = is_seed | pc.is_in(self._user_ids, value_set=pa.array(exclude_ids, USER_ID_TYPE)).to_numpy(False)
        best, similarity = most_alike(fitted, self._people, is_out, size)
        ids = self._user_ids.take(pa.array(best)).to_pylist()
        return {
            "seeds": counts,
            "ranked_users": int(np.sum(~is_out)),
            "other_users": len(others),
            "held_out_auc": fitted.held_out_auc,
            "audience": list(zip(ids, similarity.tolist(), strict=True)),
        }

    def recommend(
        self, vectors_BD: NDArray[np.float32], seen: list[bytes], k: int, wishes: Sequence[Wish] | None = None
    ) -> list[list[FoundItem]]:
        histories = unpack_timelines([""] * len(seen), seen)
        queries_BD = _widened(vectors_BD, np.ones(len(vectors_BD)))

        def find(rows: NDArray[np.int64], num: int, allowed_I: NDArray[np.bool_] | None) -> Found:
            had = histories if len(rows) == len(queries_BD) else histories.take(rows)
            return self._items.search(queries_BD[rows], num, allowed_N=allowed_I, exclude=had)

        return self._wished(len(vectors_BD), k, wishes, find)

    def recommend_several(
        self,
        vectors_BD: NDArray[np.float32],
        interests: list[list[Interest]],
        seen: list[bytes],
        k: int,
        wishes: Sequence[Wish] | None = None,
    ) -> list[list[FoundItem]]:
        histories = unpack_timelines([""] * len(seen), seen)

        def find(rows: NDArray[np.int64], num: int, allowed_I: NDArray[np.bool_] | None) -> Found:
            vectors_RD = vectors_BD[rows]
            queries = self._queries([interests[row] for row in rows]).beside(_widened(vectors_RD, np.ones(len(rows))))
            found_RK = several_items(
                queries, len(rows), self._items, num, allowed_I=allowed_I, exclude=histories.take(rows)
            )
            kept_RK = np.maximum(found_RK, 0)
            return found_RK, np.einsum("bd,bkd->bk", vectors_RD, self._items_ID[kept_RK]) + self._bias_I[kept_RK]

        return self._wished(len(vectors_BD), k, wishes, find)

    def similar_items(self, item_ids: list[str], k: int) -> list[list[FoundItem] | None]:
        """Nearest k other items by cosine, None for an item that has no vector in the release."""
        known = [(place, self._index_of[item_id]) for place, item_id in enumerate(item_ids) if self._is_item(item_id)]
        found: list[list[FoundItem] | None] = [None] * len(item_ids)
        if known:
            items_Q = np.array([item for _, item in known])
            k = min(k, len(self._items_ID) - 1)
            rows_QK, scores_QK = self._items.search(
                _widened(self._items_ID[items_Q], np.zeros(len(items_Q))), k + 1, allowed_N=self._candidates
            )
            for (place, _), row in zip(known, self._rows(*_without(items_Q, rows_QK, scores_QK)), strict=True):
                found[place] = row
        return found

    def _wished(self, num_users: int, k: int, wishes: Sequence[Wish] | None, find: Find) -> list[list[FoundItem]]:
        """Users with one filter are searched together; more candidates are searched where difference is wished."""
        k = min(k, len(self._items_ID))
        wishes = wishes or [NO_WISH] * num_users
        diversity_B = np.array([diversity for *_, diversity in wishes])
        num = min(k * POOL, len(self._items_ID)) if diversity_B.any() else k
        indices_BP = np.full((num_users, num), -1, dtype=np.int32)
        scores_BP = np.full((num_users, num), -np.inf, dtype=np.float32)
        for wanted in {(category, max_age_days) for category, max_age_days, _ in wishes}:
            rows = np.array([row for row, wish in enumerate(wishes) if wish[:2] == wanted])
            indices_BP[rows], scores_BP[rows] = find(rows, num, self._allowed(*wanted))
        if diversity_B.any():
            places_P = np.broadcast_to(-np.arange(num, dtype=np.float32), indices_BP.shape)
            order_BK = diversify(indices_BP, places_P, self._items_ID, k, diversity_B)
            is_none_BK = order_BK < 0
            indices_BP = np.take_along_axis(indices_BP, np.maximum(order_BK, 0), axis=1)
            scores_BP = np.take_along_axis(scores_BP, np.maximum(order_BK, 0), axis=1)
            indices_BP[is_none_BK] = -1
        return self._rows(indices_BP, scores_BP)

    def _queries(self, interests: list[list[Interest]]) -> Queries:
        """One for each interest whose medoid the release knows; popularity counts for none of them."""
        flat = [(user, medoid, weight) for user, of_user in enumerate(interests) for medoid, weight in of_user]
        items_Q = np.array([self._index_of.get(medoid, -1) for _, medoid, _ in flat], dtype=np.int64)
        is_known = items_Q >= 0
        # A weight is 0 in float32 where an interest is a hundred half-lives old.
        weights_Q = np.maximum(np.array([weight for *_, weight in flat], dtype=np.float64), _LEAST_WEIGHT)
        users_Q = np.array([user for user, *_ in flat], dtype=np.int64)
        medoids_QD = _widened(self._items_ID[items_Q[is_known]], np.zeros(int(is_known.sum())))
        return Queries(users_Q[is_known], medoids_QD, weights_Q[is_known])

    def _find_allowed(self, category: str | None, max_age_days: float | None) -> NDArray[np.bool_] | None:
        """Candidates of a category or below it, first seen at most so long before the release's as_of; None: all."""
        allowed = self._candidates
        if category is not None:
            names = self._catalogue.column(Col.CATEGORY)
            below = pc.or_(pc.equal(names, category), pc.starts_with(names, f"{category}/"))
            allowed = _both(allowed, below.fill_null(False).to_numpy(zero_copy_only=False))
        if max_age_days is not None:
            since_us = self._as_of_us - max_age_days * MICROSECONDS_PER_DAY
            first_seen = pc.cast(self._catalogue.column(Col.FIRST_SEEN), pa.int64())
            # An item that nobody met yet is a new one.
            allowed = _both(allowed, pc.greater_equal(first_seen.fill_null(self._as_of_us), int(since_us)).to_numpy())
        return allowed

    def _is_item(self, item_id: str) -> bool:
        index = self._index_of.get(item_id)
        return index is not None and bool(np.any(self._items_ID[index]))

    @cached_property
    def _index_of(self) -> dict[str, int]:
        ids = self._catalogue.column(Col.ITEM_ID).to_pylist()
        return {item_id: index for index, item_id in enumerate(ids)}

    def _rows(self, indices_BK: NDArray[np.int32], scores_BK: NDArray[np.float32]) -> list[list[FoundItem]]:
        num_users, k = indices_BK.shape
        found = self._catalogue.take(pa.array(np.maximum(indices_BK, 0).reshape(-1)))
        columns = [found.column(name).to_pylist() for name in (Col.ITEM_ID, Col.TITLE, Col.CATEGORY)]
        rows = list(zip(*columns, scores_BK.reshape(-1).tolist(), strict=True))
        is_found_BK = indices_BK >= 0
        return [_kept(rows[b * k : (b + 1) * k], is_found_BK[b]) for b in range(num_users)]

    def similar(self, user_ids: list[str], vectors_BD: NDArray[np.float32], k: int) -> list[list[FoundUser]]:
        k = min(k, len(self._users_UD))
        own = pc.index_in(pa.array(user_ids, USER_ID_TYPE), value_set=self._user_ids).fill_null(-1)
        rows_BK, scores_BK = _without(own.to_numpy(), *self._users.search(vectors_BD, k + 1))
        ids = self._user_ids.take(pa.array(np.maximum(rows_BK, 0).reshape(-1))).to_pylist()
        k = rows_BK.shape[1]
        rows = list(zip(ids, scores_BK.reshape(-1).tolist(), strict=True))
        is_found_BK = rows_BK >= 0
        return [_kept(rows[b * k : (b + 1) * k], is_found_BK[b]) for b in range(len(user_ids))]


def _without(
    own_Q: NDArray[Any], rows_QK: NDArray[np.int32], scores_QK: NDArray[np.float32]
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """One answer less for each query: its own row, or else the last one."""
    order = np.argsort(rows_QK == own_Q[:, None], axis=1, kind="stable")[:, :-1]
    return np.take_along_axis(rows_QK, order, axis=1), np.take_along_axis(scores_QK, order, axis=1)


def _both(first: NDArray[np.bool_] | None, second: NDArray[np.bool_]) -> NDArray[np.bool_]:
    return second if first is None else first & second


def _widened(x_ND: NDArray[np.float32], last_N: NDArray[Any]) -> NDArray[np.float32]:
    return np.column_stack([x_ND, last_N.astype(np.float32)])


def _kept(rows: list[Row], is_found: NDArray[np.bool_]) -> list[Row]:
    return [row for row, found in zip(rows, is_found.tolist(), strict=True) if found]
