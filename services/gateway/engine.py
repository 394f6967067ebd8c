"""What each route answers, without HTTP: one engine serves one release, and a new release is a new engine.

Stored reads touch nothing but the store in this process. `?fresh=true`, recommendations and similar users go through
the stages in micro-batches. Events are answered for when the online log has them on disk.
Answers are ready bytes; every one carries `release`, `age_ms`, `as_of` and `computed_at`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from itertools import repeat
from typing import Any

import orjson

import sonder
from services.gateway.answers import ENVELOPE, PARTS, Answers, asks_audiences, now_us
from services.gateway.audiences import AudiencePreviews
from services.gateway.batcher import MicroBatcher
from services.gateway.erasing import Erasures, erase, told
from services.gateway.finding import Finding, Query
from services.gateway.fresh import FreshPath, FreshProfile
from services.gateway.memberships import AudienceMemberships, Audiences
from services.gateway.reasons import explain_interest, explain_score
from services.gateway.recent import Current, RecentEvents
from services.gateway.release_info import ReleaseInfo
from services.gateway.stages import FoundItem, FoundUser, HistoryBatch, Stages, Wish
from services.gateway.tables import to_stream
from services.warming import sample_batch
from sonder.core import metrics
from sonder.core.errors import InvalidRequest, NotFound, StageUnavailable
from sonder.events.online import OnlineEvent, read_events
from sonder.profiles.event_log import Appended, EventLog
from sonder.profiles.recent_events import EventPacker
from sonder.profiles.record import iso_time
from sonder.profiles.store import ProfileStore, StoredProfile
from sonder.segments.lookalike import LEAST_SEEDS, few_seeds

MAX_ANSWERS = 100
NO_WISH = Wish()
NOTHING: frozenset[str] = frozenset()
LOOKALIKE_BUDGET_S = 30.0  # an audience is fitted while its caller waits


class Engine:
    """One release, its store and its stages."""

    def __init__(
        self,
        release: ReleaseInfo,
        store: ProfileStore,
        stages: Stages,
        previews: AudiencePreviews,
        memberships: AudienceMemberships,
        packer: EventPacker,
        log: EventLog | None = None,
        erasures: Erasures | None = None,
        *,
        budget_s: float = 2.0,
        clock_us: Callable[[], int] = now_us,
    ) -> None:
        self._release, self._store, self._stages = release, store, stages
        self._answers = Answers(release.id, clock_us)
        self._previews, self._memberships = previews, memberships
        self._budget_s, self._clock_us = budget_s, clock_us
        self._have_answered = False  # every stage, once
        self._fresh_path = FreshPath(
            stages,
            base_rates=release.base_rates,
            max_events=store.metadata().max_events,
            budget_s=budget_s,
            clusters=release.clusters,
        )
        self._recent = RecentEvents(store, log, packer, release.cold, release_as_of_us=release.as_of_us)
        self._log, self._erasures = log, erasures
        self._fresh = MicroBatcher(self._compute_fresh, name="fresh", max_batch=128, max_running=1, lingers=True)
        self._explained = MicroBatcher(self._compute_explained, name="explained", max_batch=8)  # milliseconds a user
        self._accepting = MicroBatcher(self._append, name="events", max_batch=64, max_running=1)
        self._finding = Finding(stages, budget_s=budget_s)

    @property
    def release_id(self) -> str:
        return self._release.id

    @property
    def created_at_us(self) -> int:
        """Of the release."""
        return self._release.created_at_us

    @property
    def store(self) -> ProfileStore:
        return self._store

    def named(self, release: str | None) -> Engine:
        """Itself, for who names its release or none; NotFound for another one (services.gateway.split has several)."""
        if release is not None and release != self._release.id:
            raise NotFound(
                f"Release {release[:64]!r} is not served here",
                expected=self._release.id,
                do="`sonder release also ID` serves another one beside the current one",
            )
        return self

    def announce(self) -> None:
        """Tell the metrics that this is the served release."""
        num_profiles = self._store.metadata().num_profiles
        metrics.set_release(self._release.id, sonder.__version__, num_profiles=num_profiles)

    def rule(self, text: str) -> Callable[[str], bool]:
        """Whether an audience rule holds for a user by the stored profile; not for one whom the release does not know.

        Reads files when it is made: in a thread. InvalidRule where the release does not have what it names.
        """
        holds = self._memberships.rule(text)

        def of_user(user_id: str) -> bool:
            stored = self._store.get(user_id)
            return stored is not None and holds(user_id, stored.body, stored.timeline)

        return of_user

    def store_bytes(self) -> int | None:
        """Size of the store on this node; None where it lies elsewhere."""
        measure = getattr(self._store, "size_bytes", None)
        return None if measure is None else int(measure())

    # -- stored reads ---------------------------------------------------------------------------------------------

    def profile(self, user_id: str, fields: Sequence[str] | None = None) -> bytes:
        """The stored profile; the declared cold one for a user whom the release does not know."""
        stored = self._store.get(user_id)
        if stored is not None:
            self._answers.observe_age(stored.computed_at_us)
        return self._answers.profile(
            stored or self._release.cold(user_id), fields, audiences=self._stored_audiences(user_id, fields)
        )

    def profiles(self, user_ids: Sequence[str], fields: Sequence[str] | None = None) -> bytes:
        """Stored profiles in the order asked for."""
        found, audiences = self._stored_many(user_ids, fields)
        pieces: list[bytes | memoryview] = [b'{"release":"%b","profiles":[' % self._release.id.encode()]
        for stored, of_user in zip(found, audiences or repeat(None), strict=False):
            pieces += *self._answers.pieces(stored, fields, audiences=of_user), b","
        pieces[-1] = b"]}"  # a request names one user at least
        return b"".join(pieces)

    def each_profile(self, user_ids: Sequence[str], fields: Sequence[str] | None = None) -> list[bytes]:
        """The profiles of a batch one by one, each saying its release."""
        found, audiences = self._stored_many(user_ids, fields)
        return [
            self._answers.profile(stored, fields, audiences=of_user)
            for stored, of_user in zip(found, audiences or repeat(None), strict=False)
        ]

    def profiles_stream(self, user_ids: Sequence[str], fields: Sequence[str] | None = None) -> bytes:
        """The same as an Arrow IPC stream, by default with the embedding, as the files of the release have it."""
        found, audiences = self._stored_many(user_ids, fields)
        parts = [name for name in PARTS if fields is None or name in fields]
        return to_stream(self._release.id, found, audiences, columns=(*ENVELOPE, *parts), now_us=self._clock_us())

    def _stored_many(
        self, user_ids: Sequence[str], fields: Sequence[str] | None
    ) -> tuple[list[StoredProfile], list[Audiences] | None]:
        found = self._store.batch_get(user_ids)
        if known := [stored.computed_at_us for stored in found if stored is not None]:
            self._answers.observe_age(min(known))
        audiences = self._audiences_of(user_ids) if asks_audiences(fields) else None
        return [
            self._release.cold(user_id) if stored is None else stored
            for user_id, stored in zip(user_ids, found, strict=True)
        ], audiences

    async def explanation(self, user_id: str) -> bytes:
        """Why the profile says what it says: drivers of each score, evidence of each interest and of the lifecycle.

        The stored profile's, or where that has no drivers (it was refreshed), of the profile computed now.
        """
        answer = orjson.loads(self._answers.profile(self._stored(user_id), None))
        if any(score["drivers"] is None for score in answer["scores"]):
            answer = orjson.loads(await self._computed(user_id, None, self._explained))
        reasons = [explain_score(score) for score in answer["scores"]]
        reasons += [explain_interest(interest) for interest in answer["interests"]]
        kept = {name: answer[name] for name in ("release", "age_ms", *ENVELOPE, "segments", "scores", "interests")}
        return orjson.dumps({**kept, "reasons": reasons})

    def release(self) -> bytes:
        return orjson.dumps(self._release.summary)

    def close(self, *, with_log: bool = True) -> None:
        """Close the store and the log, unless another engine has that too; nothing is answered afterwards."""
        self._previews.close()
        self._memberships.close()
        self._store.close()
        if self._erasures is not None:
            self._erasures.close()
        if self._log is not None and with_log:
            self._log.close()

    async def is_ready(self) -> bool:
        """The store is of this release and every stage has answered, in time, once since the start.

        Later failures of a stage degrade answers and say so; they are no reason to stop asking this gateway.
        """
        if self._store.metadata().release != self._release.id:
            return False
        if not self._have_answered:
            try:
                await self._ask_every_stage()
            except StageUnavailable:
                return False
            self._have_answered = True
        return True

    async def _ask_every_stage(self) -> None:
        """The first calls also connect this gateway to the other deployments."""
        user_ids, timelines = sample_batch(self._release.as_of_us)
        batch, deadline = HistoryBatch(user_ids, timelines, self._release.as_of_us), self._deadline(0.0)
        vectors, _ = await asyncio.gather(
            self._stages.embed(batch, deadline=deadline), self._stages.segment(batch, deadline=deadline)
        )
        await asyncio.gather(
            self._stages.score(batch, vectors, with_drivers=True, deadline=deadline),
            self._stages.recommend(vectors, timelines, 1, [NO_WISH] * 2, deadline=deadline),
            self._stages.similar(user_ids, vectors, 1, deadline=deadline),
        )

    async def preview_audience(self, rule: str, *, num_sampled: int) -> bytes:
        """How many users a rule finds, estimated from a sample and with its error; nothing is saved."""
        return orjson.dumps(await self._previews.preview(rule, num_sampled=num_sampled))

    # -- through the stages ---------------------------------------------------------------------------------------

    async def fresh_profile(self, user_id: str, fields: Sequence[str] | None = None) -> bytes:
        """The profile computed now; parts that could not be are the stored ones, and `degraded` says so."""
        return await self._computed(user_id, fields, self._fresh)

    async def _computed(
        self, user_id: str, fields: Sequence[str] | None, batcher: MicroBatcher[tuple[str, Current], FreshProfile]
    ) -> bytes:
        current = self._recent.current(user_id)
        if not current.is_known:
            return self._answers.profile(
                self._release.cold(user_id), fields, audiences=self._stored_audiences(user_id, fields)
            )
        try:
            fresh = await batcher.submit((user_id, current))
        except StageUnavailable as error:
            missing = {"stage": "gateway", "reason": error.found, "instead": "the stored profile"}
            return self._answers.profile(
                current.profile, fields, (missing,), audiences=self._stored_audiences(user_id, fields)
            )
        self._answers.observe_age(fresh.computed_at_us)
        computed = StoredProfile(fresh.computed_at_us, fresh.body, fresh.embedding, b"")
        audiences = None
        if asks_audiences(fields):
            timeline = current.profile.timeline
            audiences = await asyncio.to_thread(self._memberships.fresh, user_id, fresh.body, timeline)
        return self._answers.profile(computed, fields, fresh.degraded, audiences=audiences)

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
        """Nearest items, without those of the history unless `seen`; popular ones for a cold user, and marked so.

        `with_interests`: the user's interests and its vector share the k places in turns. What is filtered by `wish`
        is no popular item either; diversity is not asked of those. `explicit`: which of `from` and `diversity` the
        caller itself asked for; an experiment leaves those alone (services.gateway.experimenting).
        """
        stored = self._recent.current(user_id).profile  # what was just acted on is not suggested next
        degraded: tuple[dict[str, Any], ...] = ()
        found: list[FoundItem] = []
        if stored.embedding:
            try:
                interests = _medoids(stored.body) if with_interests else None
                query = Query(user_id, stored.embedding, b"" if seen else stored.timeline, k, interests, wish)
                found = await self._finding.items(query)
            except StageUnavailable as error:
                degraded = ({"stage": "retrieval", "reason": error.found, "instead": "popular items"},)
        items = found or self._release.popular_for(stored.timeline if not seen else b"", k, wish)
        fallback = "popular" if items and not found else None
        ranked = [
            {"rank": rank, "item_id": i.item_id, "title": i.title, "category": i.category, "score": i.score}
            for rank, i in enumerate(items, 1)
        ]
        return self._answers.parts(stored, {"fallback": fallback, "recommendations": ranked}, degraded)

    async def similar_items(self, item_id: str, *, k: int) -> bytes:
        """Nearest other items by cosine; NotFound for an item without a vector, StageUnavailable without retrieval."""
        found = await self._finding.similar_items(item_id, k)
        if found is None:
            raise NotFound(
                f"Release {self._release.id} has no vector of this item",
                expected="an item of the catalogue or of the log that the release was built from",
            )
        similar = [
            {"rank": rank, "item_id": i.item_id, "title": i.title, "category": i.category, "similarity": i.score}
            for rank, i in enumerate(found, 1)
        ]
        return orjson.dumps({"release": self._release.id, "item_id": item_id, "similar": similar})

    async def similar(self, user_id: str, *, k: int) -> bytes:
        """Nearest other users; none for a cold user."""
        stored = self._stored(user_id)
        degraded: tuple[dict[str, Any], ...] = ()
        found: list[FoundUser] = []
        if stored.embedding:
            try:
                found = await self._finding.users(Query(user_id, stored.embedding, b"", k))
            except StageUnavailable as error:
                degraded = ({"stage": "retrieval", "reason": error.found, "instead": "no users"},)
        kept = self._without_erased(found)
        users = [{"user_id": user.user_id, "similarity": user.similarity} for user in kept]
        return self._answers.parts(stored, {"similar": users}, degraded)

    async def lookalike(self, seed_ids: Sequence[str], *, size: int, exclude: Sequence[str] = ()) -> bytes:
        """The users of the release most like the seeds, without those of `exclude`.

        InvalidRequest where too few of the seeds can be used.
        """
        deadline = asyncio.get_running_loop().time() + LOOKALIKE_BUDGET_S
        found = await self._stages.lookalike(seed_ids, size, exclude, deadline=deadline)
        seeds = found.seeds
        if found.users is None:
            raise InvalidRequest(
                f"{seeds['used']} of {seeds['given']} seeds can be used beside {found.other_users} other users; "
                f"{seeds['unknown']} seeds are unknown to the release, {seeds['cold']} have no vector",
                expected=f"{LEAST_SEEDS} of each at least",
                do="Look at the spelling of the ids, or add seeds",
            )
        audience = [
            {
                "user_id": user.user_id,
                "rank": rank,
                "similarity": user.similarity,
                "percentile": 100 * (found.ranked_users - rank + 1) / found.ranked_users,
            }
            for rank, user in enumerate(self._without_erased(found.users), 1)
        ]
        content = {
            "release": self._release.id,
            "as_of": iso_time(self._release.as_of_us),
            "seeds": seeds,
            "excluded": len(set(exclude)),
            "warnings": few_seeds(seeds["used"]),
            "ranked_users": found.ranked_users,
            "held_out_auc": found.held_out_auc,
            "audience": audience,
        }
        return orjson.dumps(content)

    async def _compute_fresh(
        self, batch: Sequence[tuple[str, Current]], waited_s: float, *, with_drivers: bool = False
    ) -> list[FreshProfile]:
        as_of_us = max(current.as_of_us for _, current in batch)
        asked = [(user_id, current.profile) for user_id, current in batch]
        return await self._fresh_path.compute(
            asked, waited_s, as_of_us=as_of_us, now_us=self._clock_us(), with_drivers=with_drivers
        )

    async def _compute_explained(self, batch: Sequence[tuple[str, Current]], waited_s: float) -> list[FreshProfile]:
        return await self._compute_fresh(batch, waited_s, with_drivers=True)

    # -- events ---------------------------------------------------------------------------------------------------

    async def accept(self, rows: Sequence[Any]) -> bytes:
        """Write the events among the rows into the online log; they are on disk when this answers.

        InvalidRequest where no row is an event; StageUnavailable where the log cannot be written.
        """
        events, rejected = read_events(rows, now_us=self._clock_us())
        if not events:
            first = rejected[0]
            raise InvalidRequest(
                f"None of {len(rows)} rows is an event; row {first.row}: {first.detail}",
                expected="user_id, item_id and action, and timestamps in ISO 8601",
            )
        appended = await self._accepting.submit(events)
        return orjson.dumps({**appended._asdict(), "rejected": [row._asdict() for row in rejected]})

    async def erase(self, user_id: str, *, beside: Sequence[Engine] = ()) -> bytes:
        """Erase a user from all that is served, and from the next build -> a receipt; repeating it is harmless.

        `beside`: engines of other releases, whose stores lose the user too.
        """
        if self._log is None or self._erasures is None:
            raise StageUnavailable("This gateway has no online log, and could not keep the user out of it")
        now_us = self._clock_us()
        stores = [self._store, *(engine.store for engine in beside)]
        receipt = await erase(user_id, self._erasures, stores, self._log, now_us=now_us)
        return orjson.dumps(told(receipt, release=self._release.id, erased_at=iso_time(now_us)))

    def _without_erased(self, users: list[FoundUser]) -> list[FoundUser]:
        """Retrieval holds the vectors of the release as it was built."""
        if self._erasures is None:
            return users
        held = self._erasures.hold([user.user_id for user in users])
        return [user for user, is_out in zip(users, held, strict=True) if not is_out]

    async def _append(self, batches: Sequence[list[OnlineEvent]], waited_s: float) -> list[Appended]:
        """Batches that arrive together are on disk with one write."""
        if self._log is None:
            raise StageUnavailable("This gateway has no online log")
        return await asyncio.to_thread(self._log.append_all, batches)

    def _deadline(self, waited_s: float) -> float:
        return asyncio.get_running_loop().time() + self._budget_s - waited_s

    # -- answers --------------------------------------------------------------------------------------------------

    def _stored(self, user_id: str) -> StoredProfile:
        return self._store.get(user_id) or self._release.cold(user_id)

    def _stored_audiences(self, user_id: str, fields: Sequence[str] | None) -> Audiences | None:
        return self._audiences_of([user_id])[0] if asks_audiences(fields) else None

    def _audiences_of(self, user_ids: Sequence[str]) -> list[Audiences]:
        found = self._memberships.stored(user_ids)
        if self._erasures is None:
            return found
        return [
            Audiences([]) if is_out else of_user
            for of_user, is_out in zip(found, self._erasures.hold(user_ids), strict=True)
        ]


def _medoids(body: bytes) -> list[tuple[str, float]]:
    return [(interest["medoid_item_id"], interest["weight"]) for interest in orjson.loads(body)["interests"]]
