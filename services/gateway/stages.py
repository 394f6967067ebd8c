"""The other deployments as the gateway sees them: typed calls with a deadline, and failures that have a reason.

Whatever goes wrong behind a handle (a replica that died, one that is full, one that is slow, a bug) becomes a
StageUnavailable whose sentence may be shown to a caller; the cause is logged.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from opentelemetry.trace import SpanKind

from services.observed import caller
from services.travelling import unpacked
from sonder.core import metrics, telemetry
from sonder.core.errors import StageUnavailable

logger = logging.getLogger("sonder")
T = TypeVar("T")


@dataclass(frozen=True)
class HistoryBatch:
    """The histories of a micro-batch of B users, as they travel (sonder.profiles.packing)."""

    user_ids: list[str]  # [B]
    timelines: list[bytes]  # [B]
    as_of_us: int


class Segmented(NamedTuple):
    """What segmentation says of B users."""

    interests: pa.Table  # one row per user and interest
    segments: pa.Table  # user_id, lifecycle
    affinities: pa.Table  # one row per user and category
    summary: NDArray[np.float64] | None = None  # [B, 7] what scores read of the interests, where it is the same


@dataclass(frozen=True)
class FoundItem:
    item_id: str
    title: str | None
    category: str | None
    score: float | None  # None where it was not ranked for this user


class Wish(NamedTuple):
    """What a caller wants of its recommendations beside their being near."""

    category: str | None = None  # or anything below it
    max_age_days: float | None = None  # since the item's first event, at the release's as_of
    diversity: float = 0.0  # 0..1, of maximal marginal relevance


@dataclass(frozen=True)
class FoundUser:
    user_id: str
    similarity: float


@dataclass(frozen=True)
class FoundAudience:
    """A lookalike; `users` is None where too few seeds can be used."""

    seeds: dict[str, int]  # given, used, unknown, cold
    ranked_users: int
    other_users: int  # who are no seeds, those that may not be in it among them
    held_out_auc: float | None
    users: list[FoundUser] | None


class Stages(Protocol):
    """What the gateway asks of the other deployments. `deadline` is a time of the running event loop."""

    async def embed(self, batch: HistoryBatch, *, deadline: float) -> NDArray[np.float32]:
        """Vectors [B, D], the zero vector where nothing is known."""

    async def segment(self, batch: HistoryBatch, *, deadline: float) -> Segmented:
        """What the history alone says of the users."""

    async def score(
        self,
        batch: HistoryBatch,
        vectors: NDArray[np.float32],
        interests: NDArray[np.float64] | None = None,
        *,
        with_drivers: bool,
        deadline: float,
    ) -> pa.Table:
        """Scores (user_id, name, value, drivers), one row per user and task; drivers are null unless asked for.

        `interests`: `Segmented.summary` of the same batch; without it the interests are found once more.
        """

    async def recommend(
        self, vectors: NDArray[np.float32], seen: Sequence[bytes], k: int, wishes: Sequence[Wish], *, deadline: float
    ) -> list[list[FoundItem]]:
        """Nearest k items per vector [B] as wished [B]; items of the packed timeline in `seen` [B] are left out."""

    async def recommend_several(
        self,
        vectors: NDArray[np.float32],
        interests: Sequence[list[tuple[str, float]]],
        seen: Sequence[bytes],
        k: int,
        wishes: Sequence[Wish],
        *,
        deadline: float,
    ) -> list[list[FoundItem]]:
        """k items per vector [B], from it and the user's interests (medoid_item_id, weight) in turns."""

    async def similar(
        self, user_ids: Sequence[str], vectors: NDArray[np.float32], k: int, *, deadline: float
    ) -> list[list[FoundUser]]:
        """Nearest k other users per vector [B]."""

    async def similar_items(self, item_ids: Sequence[str], k: int, *, deadline: float) -> list[list[FoundItem] | None]:
        """Nearest k other items of each item; None for an item without a vector."""

    async def lookalike(
        self, seed_ids: Sequence[str], size: int, exclude_ids: Sequence[str], *, deadline: float
    ) -> FoundAudience:
        """The `size` users most like the seeds, none of whom is a seed or in `exclude_ids`."""


def _as_it_is(answer: Any) -> Any:
    return answer


def _segmented(answer: tuple[tuple[bytes, ...], NDArray[np.float64] | None]) -> Segmented:
    interests, segments, affinities = map(unpacked, answer[0])
    return Segmented(interests, segments, affinities, answer[1])


class HandleStages:
    """Stages behind the handles of one Serve application, asked for one release."""

    def __init__(
        self, *, embedding: Any, segmentation: Any, scoring: Any, retrieval: Any, release: str | None = None
    ) -> None:
        """`release`: whose models answer; None: the one that the deployments were started with."""
        self._embedding, self._segmentation = embedding, segmentation
        self._scoring, self._retrieval = scoring, retrieval
        self._named = {} if release is None else {"release": release}

    def of(self, release: str) -> HandleStages:
        """The same deployments, asked for another release."""
        return HandleStages(
            embedding=self._embedding,
            segmentation=self._segmentation,
            scoring=self._scoring,
            retrieval=self._retrieval,
            release=release,
        )

    async def embed(self, batch: HistoryBatch, *, deadline: float) -> NDArray[np.float32]:
        vectors: NDArray[np.float32] = await self._ask(
            self._embedding.embed, "embedding", deadline, batch.user_ids, batch.timelines, batch.as_of_us
        )
        return vectors

    async def segment(self, batch: HistoryBatch, *, deadline: float) -> Segmented:
        asked = (batch.user_ids, batch.timelines, batch.as_of_us)
        found: Segmented = await self._ask(
            self._segmentation.segment, "segmentation", deadline, *asked, read=_segmented
        )
        return found

    async def score(
        self,
        batch: HistoryBatch,
        vectors: NDArray[np.float32],
        interests: NDArray[np.float64] | None = None,
        *,
        with_drivers: bool,
        deadline: float,
    ) -> pa.Table:
        asked = (batch.user_ids, batch.timelines, vectors, batch.as_of_us, with_drivers, interests)
        return await self._ask(self._scoring.score, "scoring", deadline, *asked, read=unpacked)

    async def recommend(
        self, vectors: NDArray[np.float32], seen: Sequence[bytes], k: int, wishes: Sequence[Wish], *, deadline: float
    ) -> list[list[FoundItem]]:
        asked = (vectors, list(seen), k, [tuple(wish) for wish in wishes])
        return _items(await self._ask(self._retrieval.recommend, "retrieval", deadline, *asked))

    async def recommend_several(
        self,
        vectors: NDArray[np.float32],
        interests: Sequence[list[tuple[str, float]]],
        seen: Sequence[bytes],
        k: int,
        wishes: Sequence[Wish],
        *,
        deadline: float,
    ) -> list[list[FoundItem]]:
        asked = (vectors, list(interests), list(seen), k, [tuple(wish) for wish in wishes])
        return _items(await self._ask(self._retrieval.recommend_several, "retrieval", deadline, *asked))

    async def similar_items(self, item_ids: Sequence[str], k: int, *, deadline: float) -> list[list[FoundItem] | None]:
        rows = await self._ask(self._retrieval.similar_items, "retrieval", deadline, list(item_ids), k)
        return [None if row is None else [FoundItem(*item) for item in row] for row in rows]

    async def similar(
        self, user_ids: Sequence[str], vectors: NDArray[np.float32], k: int, *, deadline: float
    ) -> list[list[FoundUser]]:
        rows = await self._ask(self._retrieval.similar, "retrieval", deadline, list(user_ids), vectors, k)
        return [[FoundUser(*user) for user in row] for row in rows]

    async def lookalike(
        self, seed_ids: Sequence[str], size: int, exclude_ids: Sequence[str], *, deadline: float
    ) -> FoundAudience:
        found = await self._ask(
            self._retrieval.lookalike, "retrieval", deadline, list(seed_ids), size, list(exclude_ids)
        )
        users = found["audience"]
        audience = None if users is None else [FoundUser(*user) for user in users]
        return FoundAudience(
            found["seeds"], found["ranked_users"], found["other_users"], found["held_out_auc"], audience
        )

    async def _ask(
        self, method: Any, stage: str, deadline: float, *arguments: Any, read: Callable[[Any], Any] = _as_it_is
    ) -> Any:
        """Call a handle's method for whoever asks, read its answer, and tell how long it took."""
        started, outcome = time.perf_counter(), "failed"
        try:
            with telemetry.span(f"stage {stage}", {"users": len(arguments[0])}, kind=SpanKind.CLIENT):
                # Nobody's call has no `caller`, so a method that knows of none can be called too.
                asks_for = {"caller": found} if (found := caller()) else {}
                answer = await _within(method.remote(*arguments, **self._named, **asks_for), stage, deadline, read)
            outcome = "answered"
            return answer
        finally:
            metrics.STAGE_SECONDS.labels(stage, outcome).observe(time.perf_counter() - started)


def _items(rows: list[list[tuple[Any, ...]]]) -> list[list[FoundItem]]:
    return [[FoundItem(*item) for item in row] for row in rows]


async def _within(call: Awaitable[Any], stage: str, deadline: float, read: Callable[[Any], T]) -> T:
    """Await a response until the deadline; cancelling it on time-out cancels the work behind it.

    One that cannot be read, such as that of another version of the code, is a failure of its stage too.
    """
    try:
        async with asyncio.timeout_at(deadline):
            return read(await call)
    except TimeoutError as error:
        logger.warning("stage %s: no answer in time", stage)
        raise StageUnavailable(f"{stage} did not answer in time") from error
    except Exception as error:  # whatever a replica raised, a dead one and a full one included
        logger.warning("stage %s: %s: %s", stage, type(error).__name__, error)
        full = type(error).__name__ == "BackPressureError"
        raise StageUnavailable(f"{stage} is {'overloaded' if full else 'failing'}") from error
