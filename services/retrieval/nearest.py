"""The vectors of one release and the searches over them: what the retrieval deployment asks, without Ray.

Shapes: B users of a micro-batch, I items, U users of the release, D width, k answers.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from services.warming import sample_batch
from sonder.core.storage import Folder
from sonder.encoder.artefact import load_encoder, load_popularity
from sonder.events.contract import Col
from sonder.history.vocabulary import Vocabulary
from sonder.profiles.packing import unpack_timelines
from sonder.profiles.traits import TRAIT_COLUMNS, compute_traits, derive_traits
from sonder.releases.artefacts import Release
from sonder.retrieval.exact import similar_users, top_items
from sonder.retrieval.several import Queries, several_items
from sonder.segments.lookalike import LEAST_SEEDS, MAX_BACKGROUND, People, fit_lookalike

Row = TypeVar("Row")
FoundItem = tuple[str, str | None, str | None, float]  # item_id, title, category, score
FoundUser = tuple[str, float]  # user_id, similarity
Interest = tuple[str, float]  # medoid_item_id, weight
_LEAST_WEIGHT = 1e-9  # of an interest beside the others
_SEED = 7  # of the background that a lookalike is fitted against: the same request gets the same answer


class Nearest:
    """Items and users near a vector, in one release; the item and user vectors are held in memory."""

    def __init__(self, opened: Release) -> None:
        encoder = load_encoder(opened.encoder).with_popularity(load_popularity(opened.items))
        self._items_ID, self._bias_I = encoder.item_vectors, encoder.item_bias
        self._is_candidate_I = encoder.candidates
        self._catalogue = Vocabulary.load(opened.items).items.select([Col.ITEM_ID, Col.TITLE, Col.CATEGORY])
        everybody = _users(opened.profiles, self._items_ID.shape[1])
        self._user_ids, self._cold_ids, self._people = everybody.user_ids, everybody.cold_ids, everybody.people
        self._users_UD = self._people.vectors_ND
        user_ids, timelines = sample_batch(opened.manifest.as_of_us)
        vectors_BD = np.repeat(self._items_ID[:1], len(user_ids), axis=0)
        self.recommend(vectors_BD, timelines, k=10)
        self.similar(user_ids, vectors_BD, k=10)

    def lookalike(self, seed_ids: list[str], size: int, exclude_ids: list[str]) -> dict[str, Any]:
        given = pa.array(seed_ids, pa.string()).unique()
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
        similarity = fitted.similarity(self._people)
        is_out = is_seed | pc.is_in(self._user_ids, value_set=pa.array(exclude_ids, pa.string())).to_numpy(False)
        similarity[is_out] = -np.inf
        num_ranked = int(np.sum(~is_out))
        best = np.argsort(-similarity, kind="stable")[: min(size, num_ranked)]
        ids = self._user_ids.take(pa.array(best)).to_pylist()
        return {
            "seeds": counts,
            "ranked_users": num_ranked,
            "other_users": len(others),
            "held_out_auc": fitted.held_out_auc,
            "audience": list(zip(ids, similarity[best].tolist(), strict=True)),
        }

    def recommend(self, vectors_BD: NDArray[np.float32], seen: list[bytes], k: int) -> list[list[FoundItem]]:
        histories = unpack_timelines([""] * len(seen), seen)
        k = min(k, len(self._items_ID))
        indices_BK, scores_BK = top_items(
            vectors_BD, self._items_ID, k, bias_I=self._bias_I, allowed_I=self._is_candidate_I, exclude=histories
        )
        return self._rows(indices_BK, scores_BK)

    def recommend_several(
        self, vectors_BD: NDArray[np.float32], interests: list[list[Interest]], seen: list[bytes], k: int
    ) -> list[list[FoundItem]]:
        flat = [(user, medoid, weight) for user, of_user in enumerate(interests) for medoid, weight in of_user]
        items_Q = np.array([self._index_of.get(medoid, -1) for _, medoid, _ in flat], dtype=np.int64)
        is_known = items_Q >= 0
        # A weight is 0 in float32 where an interest is a hundred half-lives old.
        weights_Q = np.maximum(np.array([weight for *_, weight in flat], dtype=np.float64), _LEAST_WEIGHT)
        users_Q = np.array([user for user, *_ in flat], dtype=np.int64)
        medoids_QD = _widened(self._items_ID[items_Q[is_known]], np.zeros(int(is_known.sum())))
        queries = Queries(users_Q[is_known], medoids_QD, weights_Q[is_known])
        indices_BK = several_items(
            queries.beside(_widened(vectors_BD, np.ones(len(vectors_BD)))),
            len(vectors_BD),
            self._with_popularity,
            min(k, len(self._items_ID)),
            allowed_I=self._is_candidate_I,
            exclude=unpack_timelines([""] * len(seen), seen),
        )
        found_BK = np.maximum(indices_BK, 0)
        scores_BK = np.einsum("bd,bkd->bk", vectors_BD, self._items_ID[found_BK]) + self._bias_I[found_BK]
        return self._rows(indices_BK, scores_BK)

    @cached_property
    def _index_of(self) -> dict[str, int]:
        ids = self._catalogue.column(Col.ITEM_ID).to_pylist()
        return {item_id: index for index, item_id in enumerate(ids)}

    @cached_property
    def _with_popularity(self) -> NDArray[np.float32]:
        """Items whose last coordinate is their popularity: only the long-term vector asks for it."""
        return _widened(self._items_ID, self._bias_I)

    def _rows(self, indices_BK: NDArray[np.int32], scores_BK: NDArray[np.float32]) -> list[list[FoundItem]]:
        num_users, k = indices_BK.shape
        found = self._catalogue.take(pa.array(np.maximum(indices_BK, 0).reshape(-1)))
        columns = [found.column(name).to_pylist() for name in (Col.ITEM_ID, Col.TITLE, Col.CATEGORY)]
        rows = list(zip(*columns, scores_BK.reshape(-1).tolist(), strict=True))
        is_found_BK = indices_BK >= 0
        return [_kept(rows[b * k : (b + 1) * k], is_found_BK[b]) for b in range(num_users)]

    def similar(self, user_ids: list[str], vectors_BD: NDArray[np.float32], k: int) -> list[list[FoundUser]]:
        k = min(k, len(self._users_UD))
        own = pc.index_in(pa.array(user_ids, pa.string()), value_set=self._user_ids).fill_null(-1)
        rows_BK, scores_BK = similar_users(vectors_BD, self._users_UD, k, exclude_rows=own.to_numpy().astype(np.int64))
        ids = self._user_ids.take(pa.array(np.maximum(rows_BK, 0).reshape(-1))).to_pylist()
        rows = list(zip(ids, scores_BK.reshape(-1).tolist(), strict=True))
        is_found_BK = rows_BK >= 0
        return [_kept(rows[b * k : (b + 1) * k], is_found_BK[b]) for b in range(len(user_ids))]


def _widened(x_ND: NDArray[np.float32], last_N: NDArray[Any]) -> NDArray[np.float32]:
    return np.column_stack([x_ND, last_N.astype(np.float32)])


def _kept(rows: list[Row], is_found: NDArray[np.bool_]) -> list[Row]:
    return [row for row, found in zip(rows, is_found.tolist(), strict=True) if found]


@dataclass(frozen=True)
class _Users:
    """Everybody of a release."""

    user_ids: pa.Array  # [U] who have a vector
    cold_ids: pa.Array  # who have none
    people: People  # [U]


def _users(profiles: Folder, dim: int) -> _Users:
    """Read the profiles file by file; the traits are those of the first file's users, a random draw by digest."""
    tables, traits, spec = [], [], None
    for name in (name for name in profiles.files() if name.endswith(".parquet")):
        table = (profiles / name).read_table([*TRAIT_COLUMNS, "embedding"])
        spec = spec or derive_traits(table)
        traits.append(compute_traits(table, spec))
        tables.append(table.select(["user_id", "embedding"]))
    table = pa.concat_tables(tables)
    is_known = pc.is_valid(table.column("embedding"))
    cold_ids = table.filter(pc.invert(is_known)).column("user_id").combine_chunks()
    table = table.filter(is_known).combine_chunks()
    vectors = table.column("embedding").combine_chunks().flatten().to_numpy(zero_copy_only=False)
    # Arrow's memory is read-only: a writable copy once, so that no request makes one.
    people = People(vectors.reshape(-1, dim).copy(), np.concatenate(traits)[is_known.to_numpy()])
    return _Users(table.column("user_id").combine_chunks(), cold_ids, people)
