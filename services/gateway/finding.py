"""Items and users near a user, asked of retrieval in micro-batches: requests of one moment share a call."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from services.gateway.batcher import MicroBatcher
from services.gateway.stages import FoundItem, FoundUser, Stages, Wish


class Query(NamedTuple):
    """One user who asks; the vector is packed float32."""

    user_id: str
    vector: bytes
    seen: bytes  # packed timeline whose items are no answer
    k: int
    interests: list[tuple[str, float]] | None = None  # medoid_item_id, weight; None: the vector alone asks
    wish: Wish = Wish()


class Finding:
    """Micro-batches of each kind; StageUnavailable where retrieval fails or is late."""

    def __init__(self, stages: Stages, *, budget_s: float) -> None:
        self._stages, self._budget_s = stages, budget_s
        self._nearest = MicroBatcher(self._find_items, name="find items")
        self._several = MicroBatcher(self._find_items_several, name="find items of interests")
        self._similar = MicroBatcher(self._find_users, name="find users")
        self._similar_items = MicroBatcher(self._find_similar_items, name="find similar items")

    async def items(self, query: Query) -> list[FoundItem]:
        """Nearest k items; with interests, of these and the vector in turns."""
        return await (self._nearest if query.interests is None else self._several).submit(query)

    async def users(self, query: Query) -> list[FoundUser]:
        """Nearest k other users."""
        return await self._similar.submit(query)

    async def similar_items(self, item_id: str, k: int) -> list[FoundItem] | None:
        """Nearest k other items; None for an item without a vector."""
        return await self._similar_items.submit((item_id, k))

    async def _find_items(self, batch: Sequence[Query], waited_s: float) -> list[list[FoundItem]]:
        k = max(query.k for query in batch)
        seen, wishes = [query.seen for query in batch], [query.wish for query in batch]
        rows = await self._stages.recommend(_vectors(batch), seen, k, wishes, deadline=self._deadline(waited_s))
        return [row[: query.k] for row, query in zip(rows, batch, strict=True)]

    async def _find_items_several(self, batch: Sequence[Query], waited_s: float) -> list[list[FoundItem]]:
        k = max(query.k for query in batch)
        rows = await self._stages.recommend_several(
            _vectors(batch),
            [query.interests or [] for query in batch],
            [query.seen for query in batch],
            k,
            [query.wish for query in batch],
            deadline=self._deadline(waited_s),
        )
        return [row[: query.k] for row, query in zip(rows, batch, strict=True)]

    async def _find_users(self, batch: Sequence[Query], waited_s: float) -> list[list[FoundUser]]:
        k = max(query.k for query in batch)
        ids = [query.user_id for query in batch]
        rows = await self._stages.similar(ids, _vectors(batch), k, deadline=self._deadline(waited_s))
        return [row[: query.k] for row, query in zip(rows, batch, strict=True)]

    async def _find_similar_items(
        self, batch: Sequence[tuple[str, int]], waited_s: float
    ) -> list[list[FoundItem] | None]:
        most, ids = max(k for _, k in batch), [item_id for item_id, _ in batch]
        rows = await self._stages.similar_items(ids, most, deadline=self._deadline(waited_s))
        return [None if row is None else row[:k] for row, (_, k) in zip(rows, batch, strict=True)]

    def _deadline(self, waited_s: float) -> float:
        return asyncio.get_running_loop().time() + self._budget_s - waited_s


def _vectors(batch: Sequence[Query]) -> NDArray[np.float32]:
    return np.frombuffer(b"".join(query.vector for query in batch), dtype="<f4").reshape(len(batch), -1)
