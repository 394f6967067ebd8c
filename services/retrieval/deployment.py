"""The retrieval deployment: a thin shell around `services.retrieval.nearest`."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
from numpy.typing import NDArray

from services.held import Held
from services.observed import observed, start_observing
from services.retrieval.nearest import FoundItem, FoundUser, Interest, Nearest, Wish


class Retrieval:
    """Holds the item and user vectors of releases; computes off the event loop."""

    def __init__(self, workspace: str, release: str | None = None) -> None:
        start_observing("retrieval")
        self._held = Held(workspace, release, Nearest)
        self._one_lookalike = asyncio.Lock()  # each takes seconds of a core; they wait for one another

    @observed("retrieval recommend")
    async def recommend(
        self,
        vectors_BD: NDArray[np.float32],
        seen: list[bytes],
        k: int,
        wishes: list[Wish] | None = None,
        *,
        release: str | None = None,
    ) -> list[list[FoundItem]]:
        """Nearest k items of each user as it wishes, without the items of its packed timeline in `seen`."""
        held = await self._held.of(release)
        return await asyncio.to_thread(held.recommend, vectors_BD, seen, k, wishes)

    @observed("retrieval recommend several")
    async def recommend_several(
        self,
        vectors_BD: NDArray[np.float32],
        interests: list[list[Interest]],
        seen: list[bytes],
        k: int,
        wishes: list[Wish] | None = None,
        *,
        release: str | None = None,
    ) -> list[list[FoundItem]]:
        """k items of each user from its interests and its vector in turns (retrieval.several); `seen` as above.

        The order is that of the turns; a score is what `recommend` would have given the item.
        """
        held = await self._held.of(release)
        return await asyncio.to_thread(held.recommend_several, vectors_BD, interests, seen, k, wishes)

    @observed("retrieval similar")
    async def similar(
        self, user_ids: list[str], vectors_BD: NDArray[np.float32], k: int, *, release: str | None = None
    ) -> list[list[FoundUser]]:
        """Nearest k other users of each user."""
        held = await self._held.of(release)
        return await asyncio.to_thread(held.similar, user_ids, vectors_BD, k)

    @observed("retrieval similar items")
    async def similar_items(
        self, item_ids: list[str], k: int, *, release: str | None = None
    ) -> list[list[FoundItem] | None]:
        """Nearest k other items of each item; None for an item without a vector."""
        held = await self._held.of(release)
        return await asyncio.to_thread(held.similar_items, item_ids, k)

    @observed("retrieval lookalike")
    async def lookalike(
        self, seed_ids: list[str], size: int, exclude_ids: list[str], *, release: str | None = None
    ) -> dict[str, Any]:
        """The `size` users most like the seeds, who are neither among them nor excluded, and what became of the seeds.

        `audience` is a list of (user_id, similarity), best first; None where fewer than LEAST_SEEDS can be used.
        """
        held = await self._held.of(release)
        async with self._one_lookalike:
            return await asyncio.to_thread(held.lookalike, seed_ids, size, exclude_ids)
