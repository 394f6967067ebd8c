"""The retrieval deployment: a thin shell around `sonder.retrieval`, over the vectors of one release.

Shapes: B users of a micro-batch, I items, U users of the release, D width, k answers.
"""

from __future__ import annotations

import asyncio
from typing import TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from services.warming import sample_batch
from sonder.core.storage import Folder
from sonder.core.workspace import Workspace
from sonder.encoder.artefact import load_encoder, load_popularity
from sonder.events.contract import Col
from sonder.history.vocabulary import Vocabulary
from sonder.profiles.packing import unpack_timelines
from sonder.releases.artefacts import Release
from sonder.retrieval.exact import similar_users, top_items

Row = TypeVar("Row")
FoundItem = tuple[str, str | None, str | None, float]  # item_id, title, category, score
FoundUser = tuple[str, float]  # user_id, similarity


class Retrieval:
    """Holds the item and user vectors of one release."""

    def __init__(self, workspace: str, release: str) -> None:
        opened = Release.open(Workspace.at(workspace), release)
        encoder = load_encoder(opened.encoder).with_popularity(load_popularity(opened.items))
        self._items_ID, self._bias_I = encoder.item_vectors, encoder.item_bias
        self._is_candidate_I = encoder.candidates
        self._catalogue = Vocabulary.load(opened.items).items.select([Col.ITEM_ID, Col.TITLE, Col.CATEGORY])
        self._user_ids, self._users_UD = _users(opened.profiles, self._items_ID.shape[1])
        user_ids, timelines = sample_batch(opened.manifest.as_of_us)
        vectors_BD = np.repeat(self._items_ID[:1], len(user_ids), axis=0)
        self._recommend(vectors_BD, timelines, k=10)
        self._similar(user_ids, vectors_BD, k=10)

    async def recommend(self, vectors_BD: NDArray[np.float32], seen: list[bytes], k: int) -> list[list[FoundItem]]:
        """Nearest k items of each user, without the items of its packed timeline in `seen`."""
        return await asyncio.to_thread(self._recommend, vectors_BD, seen, k)

    async def similar(self, user_ids: list[str], vectors_BD: NDArray[np.float32], k: int) -> list[list[FoundUser]]:
        """Nearest k other users of each user."""
        return await asyncio.to_thread(self._similar, user_ids, vectors_BD, k)

    def _recommend(self, vectors_BD: NDArray[np.float32], seen: list[bytes], k: int) -> list[list[FoundItem]]:
        histories = unpack_timelines([""] * len(seen), seen)
        k = min(k, len(self._items_ID))
        indices_BK, scores_BK = top_items(
            vectors_BD, self._items_ID, k, bias_I=self._bias_I, allowed_I=self._is_candidate_I, exclude=histories
        )
        found = self._catalogue.take(pa.array(np.maximum(indices_BK, 0).reshape(-1)))
        columns = [found.column(name).to_pylist() for name in (Col.ITEM_ID, Col.TITLE, Col.CATEGORY)]
        rows = list(zip(*columns, scores_BK.reshape(-1).tolist(), strict=True))
        is_found_BK = indices_BK >= 0
        return [_kept(rows[b * k : (b + 1) * k], is_found_BK[b]) for b in range(len(seen))]

    def _similar(self, user_ids: list[str], vectors_BD: NDArray[np.float32], k: int) -> list[list[FoundUser]]:
        k = min(k, len(self._users_UD))
        own = pc.index_in(pa.array(user_ids, pa.string()), value_set=self._user_ids).fill_null(-1)
        rows_BK, scores_BK = similar_users(vectors_BD, self._users_UD, k, exclude_rows=own.to_numpy().astype(np.int64))
        ids = self._user_ids.take(pa.array(np.maximum(rows_BK, 0).reshape(-1))).to_pylist()
        rows = list(zip(ids, scores_BK.reshape(-1).tolist(), strict=True))
        is_found_BK = rows_BK >= 0
        return [_kept(rows[b * k : (b + 1) * k], is_found_BK[b]) for b in range(len(user_ids))]


def _kept(rows: list[Row], is_found: NDArray[np.bool_]) -> list[Row]:
    return [row for row, found in zip(rows, is_found.tolist(), strict=True) if found]


def _users(profiles: Folder, dim: int) -> tuple[pa.Array, NDArray[np.float32]]:
    """Ids [U] and vectors [U, D] of all users that have one."""
    parts = [name for name in profiles.files() if name.endswith(".parquet")]
    table = pa.concat_tables([(profiles / name).read_table(["user_id", "embedding"]) for name in parts])
    table = table.filter(pc.is_valid(table.column("embedding"))).combine_chunks()
    vectors = table.column("embedding").combine_chunks().flatten().to_numpy(zero_copy_only=False)
    # Arrow's memory is read-only: a writable copy once, so that no request makes one.
    return table.column("user_id").combine_chunks(), vectors.reshape(-1, dim).copy()
