"""A profile computed now: history from the store, through embedding, segmentation and scoring, into one record.

Segmentation and embedding need only the history, so they run side by side; scoring follows with what both say. A
stage that fails or is late takes its part of the answer with it, and nothing else: the stored part stands in, and
`degraded` names stage and reason. Scoring needs the embedding, but not segmentation: it only spares scoring to find
the interests again, so scoring waits for half of the time that is left, and does without.
What the user table says is carried over: no event changes it. Drivers of scores are computed only where asked for.
The same `assemble_profiles` made the stored profile, so without new events the fresh one equals it.
Time: `as_of` is the watermark (no event after it has been accepted), not the wall clock.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import orjson
import pyarrow as pa
from numpy.typing import NDArray

from services.gateway.stages import HistoryBatch, Segmented, Stages
from sonder.core import telemetry
from sonder.core.errors import StageUnavailable
from sonder.profiles.assembling import StageOutputs, assemble_profiles
from sonder.profiles.packing import EVENT_BYTES, unpack_timelines
from sonder.profiles.record import embeddings_of, to_json_records
from sonder.profiles.store import StoredProfile
from sonder.segments.clusters import Clusters

T = TypeVar("T")
_PARTS = {  # what a stage fills in a profile's JSON
    "embedding": ("is_cold", "cold_reason"),
    "segmentation": ("interests", "affinities"),
    "scoring": ("scores",),
}
_SEGMENTS = {  # and in its segments: the behaviour cluster is that of the vector
    "embedding": ("cluster_id", "cluster"),
    "segmentation": ("lifecycle", "since", "active_days", "tenure_days", "recency_days"),
    "scoring": (),
}


@dataclass(frozen=True)
class FreshProfile:
    """One user's profile of this moment, in the parts of a stored one."""

    computed_at_us: int
    body: bytes
    embedding: bytes
    degraded: tuple[dict[str, Any], ...]  # stage, reason, instead


@dataclass(frozen=True)
class _Composed:
    """What the stages answered for a batch; a StageUnavailable where one did not."""

    vectors: NDArray[np.float32] | StageUnavailable
    segmentation: Segmented | StageUnavailable
    scores: pa.Table | StageUnavailable

    @property
    def failures(self) -> dict[str, StageUnavailable]:
        parts = {"embedding": self.vectors, "segmentation": self.segmentation, "scoring": self.scores}
        return {name: part for name, part in parts.items() if isinstance(part, StageUnavailable)}

    def outputs(self, user_ids: list[str]) -> StageOutputs:
        """The answers as tables; None for a stage that failed."""
        tables = (None, None, None) if isinstance(self.segmentation, StageUnavailable) else self.segmentation[:3]
        vectors = None if isinstance(self.vectors, StageUnavailable) else vector_table(user_ids, self.vectors)
        scores = None if isinstance(self.scores, StageUnavailable) else self.scores
        interests, segments, affinities = tables
        return StageOutputs(
            vectors=vectors, interests=interests, affinities=affinities, segments=segments, scores=scores
        )


class FreshPath:
    """Computes micro-batches of fresh profiles; holds no state of its own."""

    def __init__(
        self,
        stages: Stages,
        *,
        base_rates: Mapping[str, float],
        max_events: int,
        budget_s: float,
        clusters: Clusters | None = None,
    ) -> None:
        self._stages, self._base_rates, self._clusters = stages, base_rates, clusters
        self._max_events, self._budget_s = max_events, budget_s

    async def compute(
        self,
        batch: Sequence[tuple[str, StoredProfile]],
        waited_s: float,
        *,
        as_of_us: int,
        now_us: int,
        with_drivers: bool = False,
    ) -> list[FreshProfile]:
        """Fresh profiles of the batch's users, in order; the waiting in the queue counts into the time budget.

        Histories are the timelines of the stored profiles, up to as_of.
        """
        deadline = asyncio.get_running_loop().time() + self._budget_s - waited_s
        stored = dict(batch)  # a user asked for twice at the same moment is computed once
        histories = HistoryBatch(list(stored), [profile.timeline for profile in stored.values()], as_of_us)
        composed = await self._compose(histories, deadline, with_drivers)
        with telemetry.span("assemble", {"users": len(stored)}):
            fresh = await asyncio.to_thread(self._assemble, stored, histories, composed, now_us)
        return [fresh[user_id] for user_id, _ in batch]

    async def _compose(self, histories: HistoryBatch, deadline: float, with_drivers: bool) -> _Composed:
        """Segmentation beside embedding and then scoring."""
        segmenting = asyncio.ensure_future(_outcome(self._stages.segment(histories, deadline=deadline)))
        try:
            vectors, scores = await self._embed_and_score(histories, segmenting, deadline, with_drivers)
            return _Composed(vectors, await segmenting, scores)
        finally:
            segmenting.cancel()  # nothing where it is done; else the work behind it

    async def _embed_and_score(
        self,
        histories: HistoryBatch,
        segmenting: asyncio.Future[Segmented | StageUnavailable],
        deadline: float,
        with_drivers: bool,
    ) -> tuple[NDArray[np.float32] | StageUnavailable, pa.Table | StageUnavailable]:
        vectors = await _outcome(self._stages.embed(histories, deadline=deadline))
        if isinstance(vectors, StageUnavailable):
            return vectors, StageUnavailable("scoring needs the embedding, which is missing")
        left_s = deadline - asyncio.get_running_loop().time()
        await asyncio.wait([segmenting], timeout=max(0.0, left_s / 2))
        segmented = segmenting.result() if segmenting.done() else None
        interests = segmented.summary if isinstance(segmented, Segmented) else None
        scores = self._stages.score(histories, vectors, interests, with_drivers=with_drivers, deadline=deadline)
        return vectors, await _outcome(scores)

    def _assemble(
        self, stored: Mapping[str, StoredProfile], histories: HistoryBatch, composed: _Composed, now_us: int
    ) -> dict[str, FreshProfile]:
        as_of_us = histories.as_of_us
        timelines = unpack_timelines(histories.user_ids, histories.timelines).before(as_of_us)
        outputs = composed.outputs(histories.user_ids)
        profiles = assemble_profiles(
            timelines, outputs, base_rates=self._base_rates, as_of_us=as_of_us, clusters=self._clusters
        )
        kept_bodies = [kept.body for kept in stored.values()]
        bodies = to_json_records(profiles, computed_at_us=now_us, stored=kept_bodies)
        embeddings = embeddings_of(profiles)
        failures = composed.failures
        fresh = {}
        for (user_id, kept), body, embedding in zip(stored.items(), bodies, embeddings, strict=True):
            is_cut = len(kept.timeline) >= self._max_events * EVENT_BYTES
            fresh[user_id] = FreshProfile(
                now_us,
                _with_stand_ins(body, kept.body, failures) if failures else body,
                kept.embedding if "embedding" in failures else embedding,
                (*_reasons(failures), *self._cut_history(is_cut)),
            )
        return fresh

    def _cut_history(self, is_cut: bool) -> tuple[dict[str, Any], ...]:
        reason = f"only the newest {self._max_events} events of this user are kept online"
        return ({"stage": "history", "reason": reason, "instead": "computed from those"},) if is_cut else ()


def vector_table(user_ids: Sequence[str], vectors_UD: NDArray[np.float32]) -> pa.Table:
    """Vectors as the stages' table: user_id, vector."""
    offsets = np.arange(0, vectors_UD.size + 1, vectors_UD.shape[1], dtype=np.int32)
    lists = pa.ListArray.from_arrays(pa.array(offsets), pa.array(vectors_UD.reshape(-1), pa.float32()))
    return pa.table({"user_id": pa.array(user_ids, pa.string()), "vector": lists})


async def _outcome(call: Awaitable[T]) -> T | StageUnavailable:
    try:
        return await call
    except StageUnavailable as error:
        return error


def _reasons(failures: Mapping[str, StageUnavailable]) -> tuple[dict[str, Any], ...]:
    return tuple(
        {"stage": stage, "reason": error.found, "instead": "the stored values"} for stage, error in failures.items()
    )


def _with_stand_ins(body: bytes, stored: bytes, failures: Mapping[str, StageUnavailable]) -> bytes:
    """The fresh body with the parts of failed stages from the stored one."""
    fresh, kept = orjson.loads(body), orjson.loads(stored)
    for stage in failures:
        fresh.update({name: kept[name] for name in _PARTS[stage]})
        fresh["segments"].update({name: kept["segments"][name] for name in _SEGMENTS[stage]})
    return orjson.dumps(fresh)
