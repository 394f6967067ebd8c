"""Several releases behind one gateway: users are split between two of them, and any is answered from when it is named.

`SplitEngine` answers what an Engine answers and is put in its place (`app.state.engine`) by one assignment, so with
nothing served beside the current release none of this is on the way of a request.
A user of the canary gets everything of the candidate: stored and fresh profiles, recommendations, similar users,
explanations, its rows of a batch. What is of no user (items, audiences, the release) is the served release's.
Where the candidate fails (not where it is degraded) the served release answers in its place, and the failure counts.
In shadow mode everybody is answered by the served release (services.gateway.shadow).
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import orjson
import pyarrow as pa

from services.gateway.arms import BATCH, COMPUTED, STORED, Arm, Recorder
from services.gateway.engine import NO_WISH, NOTHING, Engine
from services.gateway.shadow import Shadow, is_own_fault
from services.gateway.stages import Wish
from sonder.core.errors import NotFound
from sonder.releases.canary import Trial

_now_s = time.perf_counter
Part = tuple[Arm, Engine, list[int]]  # who counts, who answers, and which places of a batch


class Split:
    """The users of one trial, and what is counted of it here. `share` may change at any time."""

    def __init__(self, trial: Trial, candidate: Engine, recorder: Recorder | None = None) -> None:
        self.trial, self.candidate = trial, candidate
        self.recorder = recorder or Recorder()
        self.share = trial.share
        self.draw = trial.draw()
        self.shadow = Shadow(candidate, self.recorder) if trial.mode == "shadow" else None


class SplitEngine:
    """One served release and others beside it; of the event loop that its engines are of."""

    def __init__(self, served: Engine, beside: Mapping[str, Engine], split: Split | None = None) -> None:
        self._served, self._beside, self.split = served, dict(beside), split
        self._engines = {served.release_id: served, **self._beside}

    @property
    def release_id(self) -> str:
        return self._served.release_id

    def store_bytes(self) -> int | None:
        """Size of the stores of this node; None where they lie elsewhere."""
        sizes = [engine.store_bytes() for engine in self._engines.values()]
        return sum(size for size in sizes if size is not None) if any(size is not None for size in sizes) else None

    def named(self, release: str | None) -> Engine | SplitEngine:
        """What answers for a caller who names a release; NotFound where it is not served."""
        return self if release is None else find_engine(release, self._engines)

    # -- answers about a user -----------------------------------------------------------------------------------------

    def profile(self, user_id: str, fields: Sequence[str] | None = None) -> bytes:
        """As of an Engine: the hottest way there is, so it is written out."""
        split = self.split
        if split is None:
            return self._served.profile(user_id, fields)
        if split.shadow is not None:
            return self._profile_and_shadow(split, split.shadow, user_id, fields)
        recorder = split.recorder
        if split.draw(user_id) >= split.share:
            engine, arm = self._served, recorder.served
        else:
            engine, arm = split.candidate, recorder.candidate
        started = _now_s()
        try:
            content = engine.profile(user_id, fields)
        except Exception as error:
            if self._must_raise(error, arm, STORED):
                raise
            return self._served.profile(user_id, fields)
        arm.note(STORED, _now_s() - started, user_id, content)
        return content

    async def fresh_profile(self, user_id: str, fields: Sequence[str] | None = None) -> bytes:
        return await self._computed(user_id, lambda engine: engine.fresh_profile(user_id, fields))

    async def explanation(self, user_id: str) -> bytes:
        return await self._computed(user_id, lambda engine: engine.explanation(user_id))

    async def recommendations(
        self,
        user_id: str,
        *,
        k: int,
        seen: bool,
        with_interests: bool = False,
        wish: Wish = NO_WISH,
        explicit: frozenset[str] = NOTHING,
    ) -> bytes:
        return await self._computed(
            user_id,
            lambda engine: engine.recommendations(user_id, k=k, seen=seen, with_interests=with_interests, wish=wish),
        )

    async def similar(self, user_id: str, *, k: int) -> bytes:
        return await self._computed(user_id, lambda engine: engine.similar(user_id, k=k))

    def profiles(self, user_ids: Sequence[str], fields: Sequence[str] | None = None) -> bytes:
        """In the order asked for; each profile says its release, `release` beside them is the served one."""
        parts = self._parts(user_ids)
        return self._served.profiles(user_ids, fields) if parts is None else self._joined(parts, user_ids, fields)

    def _joined(self, parts: Sequence[Part], user_ids: Sequence[str], fields: Sequence[str] | None) -> bytes:
        found: list[bytes] = [b""] * len(user_ids)
        for arm, engine, places in parts:
            asked = [user_ids[place] for place in places]
            for place, content in zip(places, self._part(arm, engine, asked, fields), strict=True):
                found[place] = content
        return b'{"release":%b,"profiles":[%b]}' % (orjson.dumps(self.release_id), b",".join(found))

    def profiles_stream(self, user_ids: Sequence[str], fields: Sequence[str] | None = None) -> bytes:
        """The same as an Arrow IPC stream; the column `release` says each row's."""
        parts = self._parts(user_ids)
        if parts is None:
            return self._served.profiles_stream(user_ids, fields)
        return self._joined_stream(parts, user_ids, fields)

    def _joined_stream(self, parts: Sequence[Part], user_ids: Sequence[str], fields: Sequence[str] | None) -> bytes:
        tables, order = [], []
        for arm, engine, places in parts:
            asked = [user_ids[place] for place in places]
            try:
                content = engine.profiles_stream(asked, fields)
                arm.note_batch()
            except Exception as error:
                if self._must_raise(error, arm, BATCH):
                    raise
                content = self._served.profiles_stream(asked, fields)
            tables.append(pa.ipc.open_stream(content).read_all())
            order += places
        table = pa.concat_tables(tables).unify_dictionaries()
        inverse = sorted(range(len(order)), key=order.__getitem__)
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table.take(inverse).combine_chunks())
        joined: bytes = sink.getvalue().to_pybytes()
        return joined

    # -- answers about no user ----------------------------------------------------------------------------------------

    async def similar_items(self, item_id: str, *, k: int) -> bytes:
        return await self._served.similar_items(item_id, k=k)

    async def preview_audience(self, rule: str, *, num_sampled: int) -> bytes:
        return await self._served.preview_audience(rule, num_sampled=num_sampled)

    async def lookalike(self, seed_ids: Sequence[str], *, size: int, exclude: Sequence[str] = ()) -> bytes:
        return await self._served.lookalike(seed_ids, size=size, exclude=exclude)

    def release(self) -> bytes:
        """Of the served release, with the ids of those that may be named beside it."""
        return orjson.dumps({**orjson.loads(self._served.release()), "also": list(self._beside)})

    async def is_ready(self) -> bool:
        return await self._served.is_ready()

    # -- writes -------------------------------------------------------------------------------------------------------

    async def accept(self, rows: Sequence[Any]) -> bytes:
        """There is one log; the refresh of each served release follows it."""
        return await self._served.accept(rows)

    async def erase(self, user_id: str, beside: Sequence[Engine] = ()) -> bytes:
        """Out of every store that is open here, those of `beside` too."""
        others = {id(engine): engine for engine in (*self._beside.values(), *beside)}
        return await self._served.erase(user_id, beside=list(others.values()))

    # -- which arm ----------------------------------------------------------------------------------------------------

    def _profile_and_shadow(self, split: Split, shadow: Shadow, user_id: str, fields: Sequence[str] | None) -> bytes:
        if split.draw(user_id) >= split.share:
            return self._served.profile(user_id, fields)
        arm, started = split.recorder.served, _now_s()
        try:
            content = self._served.profile(user_id, fields)
        except Exception as error:
            self._must_raise(error, arm, STORED)
            raise
        arm.count(STORED, _now_s() - started, content)
        shadow.offer(STORED, user_id, content, lambda engine: engine.profile(user_id, fields))
        return content

    async def _computed(self, user_id: str, ask: Callable[[Engine], Awaitable[bytes]]) -> bytes:
        split = self.split
        is_in = split is not None and split.draw(user_id) < split.share
        if split is None or (split.shadow is not None and not is_in):
            return await ask(self._served)
        is_candidate = is_in and split.shadow is None
        engine = split.candidate if is_candidate else self._served
        arm = split.recorder.candidate if is_candidate else split.recorder.served
        started = _now_s()
        try:
            content = await ask(engine)
        except Exception as error:
            if self._must_raise(error, arm, COMPUTED):
                raise
            return await ask(self._served)
        if split.shadow is None:
            arm.note(COMPUTED, _now_s() - started, user_id, content)
        else:
            arm.count(COMPUTED, _now_s() - started, content)
            split.shadow.offer(COMPUTED, user_id, content, ask)
        return content

    def _parts(self, user_ids: Sequence[str]) -> list[Part] | None:
        """Which places of a batch each arm answers; None where the served release answers all, uncounted."""
        split = self.split
        if split is None or split.shadow is not None:
            return None
        draw, share, recorder = split.draw, split.share, split.recorder
        places: tuple[list[int], list[int]] = [], []
        for place, user_id in enumerate(user_ids):
            places[draw(user_id) < share].append(place)
        arms = ((recorder.served, self._served, places[0]), (recorder.candidate, split.candidate, places[1]))
        return [part for part in arms if part[2]]

    def _part(self, arm: Arm, engine: Engine, user_ids: list[str], fields: Sequence[str] | None) -> list[bytes]:
        try:
            found = engine.each_profile(user_ids, fields)
        except Exception as error:
            if self._must_raise(error, arm, BATCH):
                raise
            return self._served.each_profile(user_ids, fields)
        arm.note_batch(user_ids[0], found[0])
        return found

    def _must_raise(self, error: Exception, arm: Arm, kind: int) -> bool:
        """Count a failure that is ours; whether its caller has to be told: nobody else can answer."""
        if not is_own_fault(error):
            return True
        arm.note_failure(kind)
        return arm.name == "served"


def find_engine(release: str, engines: Mapping[str, Engine]) -> Engine:
    """The engine of a release that a caller names."""
    engine = engines.get(release)
    if engine is None:
        raise NotFound(
            f"Release {release[:64]!r} is not served here",
            expected="one of " + ", ".join(engines),
            do="`sonder release also ID` serves another one beside the current one",
        )
    return engine
