"""`sonder repair`: the stored profiles of some users, computed anew and written where the store says something else.

A healthy record is a function of the release, of the user's history in the release's snapshot and of the online events
that refreshes have counted. That is computed again here and compared field by field; a record without a difference is
not touched. A refreshed record is computed at its own moment, so that time that has passed is no difference.

Beside a running refresh: a record is only replaced while it is still the one that was read. A refresh that had read a
broken record before may write its own version of it after us; it can only do that for a user with events that wait, so
such users are looked at again after their events have been counted. Nothing running: the refresh's lock is held here.
Limits: the embedded store is that of this machine; for a server, run it where the online log is. For everybody
`sonder store drop` and `store load` are faster.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Literal, NamedTuple

import numpy as np
import orjson
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from sonder.core import telemetry
from sonder.core.errors import ArtefactMismatch
from sonder.core.ids import bucket_of
from sonder.events.erasure import erased_until_us, is_erased, read_erasures
from sonder.history.snapshot import buckets_of, read_timelines, read_users
from sonder.profiles.differences import WHOLE_RECORD, differences
from sonder.profiles.online_log import OnlineLog
from sonder.profiles.packing import EVENT_BYTES, EVENT_DTYPE, pack_timelines, unpack_timelines
from sonder.profiles.recent_events import EventPacker
from sonder.profiles.record import embeddings_of, to_json_records
from sonder.profiles.store import ProfileStore, Progress, StoredProfile, unpack
from sonder.releases.artefacts import Release
from sonder.releases.profiling import Profiler

logger = logging.getLogger("sonder")
USERS_AT_ONCE = 256
WAIT_S, LOOK_EVERY_S = 30.0, 0.2  # for users whose events wait for a refresh
NO_LIMIT = 1 << 40  # events of a history
Outcome = Literal["same", "repaired", "unknown", "erased", "busy", "elsewhere"]


class RepairedUser(NamedTuple):
    """What became of one user."""

    user_id: str
    outcome: Outcome
    fields: tuple[str, ...] = ()  # that were different


@dataclass(frozen=True)
class _Wanted:
    """What a user's record has to say, and what the store holds instead."""

    held: bytes | None
    stored: StoredProfile | None  # None also where what is held is broken
    timeline: bytes  # all that is known before `as_of`
    as_of_us: int
    is_refreshed: bool


@dataclass
class Repair:
    """One store of one release, and what its records are made of."""

    release: Release
    store: ProfileStore
    log: OnlineLog | None
    dry_run: bool = False
    wait_s: float = WAIT_S
    is_alone: bool = False  # nobody refreshes meanwhile
    profiler: Profiler = field(init=False)

    def __post_init__(self) -> None:
        self.profiler = Profiler.of(self.release, named_as_of_us=self.release.named_as_of_us)
        self.history = self.release.workspace.history(self.release.manifest.snapshot)
        self.metadata = self.store.metadata()
        self.everything = EventPacker(self.profiler.vocabulary, max_events=NO_LIMIT)

    def run(self, user_ids: Sequence[str]) -> list[RepairedUser]:
        """In the order asked for; a user that is named twice is repaired once."""
        distinct = list(dict.fromkeys(user_ids))
        buckets = bucket_of(pl.Series(distinct, dtype=pl.String), len(buckets_of(self.history)))
        done: dict[str, RepairedUser] = {}
        with telemetry.stage("repair", release=self.release.id, users=len(distinct)) as counts:
            for bucket in np.unique(buckets).tolist():
                inside = [distinct[row] for row in np.flatnonzero(buckets == bucket)]
                done |= {repaired.user_id: repaired for repaired in self._bucket(bucket, inside)}
                logger.info("repair: %s of %s users", f"{len(done):,}", f"{len(distinct):,}")
            counts |= Counter(repaired.outcome for repaired in done.values())
        return [done[user_id] for user_id in distinct]

    def _bucket(self, bucket: int, user_ids: Sequence[str]) -> Iterator[RepairedUser]:
        timelines = read_timelines(self.history, self.profiler.vocabulary, [bucket])
        timelines = timelines.before(self.release.manifest.as_of_us)
        rows = pc.index_in(pa.array(user_ids, pa.string()), value_set=timelines.user_ids).to_pylist()
        known = timelines.take(np.array([row for row in rows if row is not None], dtype=np.int64))
        histories = dict(zip(known.user_ids.to_pylist(), pack_timelines(known), strict=True))
        users = read_users(self.history, bucket)
        for start in range(0, len(user_ids), USERS_AT_ONCE):
            yield from self._batch(user_ids[start : start + USERS_AT_ONCE], histories, users)

    def _batch(self, user_ids: Sequence[str], histories: dict[str, bytes], users: pa.Table) -> Iterator[RepairedUser]:
        deadline, pending = time.monotonic() + self.wait_s, list(user_ids)
        while pending:
            done = self._once(pending, histories, users)
            yield from done
            settled = {repaired.user_id for repaired in done}
            pending = [user_id for user_id in pending if user_id not in settled]
            if pending and time.monotonic() > deadline:
                yield from (RepairedUser(user_id, "busy") for user_id in pending)
                return
            if pending:
                time.sleep(LOOK_EVERY_S)

    def _once(self, user_ids: Sequence[str], histories: dict[str, bytes], users: pa.Table) -> list[RepairedUser]:
        """Those that could be settled now; the others have events that wait, or were written to meanwhile."""
        progress = self.store.progress()
        held = dict(zip(user_ids, self.store.records(user_ids), strict=True))
        gone_until_us = self._gone_until_us(user_ids)
        done, wanted = [], {}
        for user_id in user_ids:
            if self._is_waiting(user_id, progress):
                continue
            history = _after(histories.get(user_id, b""), gone_until_us.get(user_id))
            found = self._wanted(user_id, held[user_id], history, progress, is_erased=user_id in gone_until_us)
            if isinstance(found, _Wanted):
                wanted[user_id] = found
            else:
                done.append(found)
        changes: list[tuple[str, bytes | None, StoredProfile]] = []
        for user_id, computed in self._computed(wanted, users).items():
            fields = differences(wanted[user_id].stored, computed)
            if fields:
                changes.append((user_id, held[user_id], computed))
            done.append(RepairedUser(user_id, "repaired" if fields else "same", fields))
        if self.dry_run:
            return done
        unsettled = self._written(changes, progress)
        return [repaired for repaired in done if repaired.user_id not in unsettled]

    def _written(self, changes: Sequence[tuple[str, bytes | None, StoredProfile]], progress: Progress) -> set[str]:
        """Write -> users to be looked at again."""
        if not changes:
            return set()
        user_ids = [user_id for user_id, _, _ in changes]
        unsettled = set(self.store.put_unchanged(changes))
        # A refresh that read one of them before this write has its events in the log already.
        unsettled |= {user_id for user_id in user_ids if self._is_waiting(user_id, progress)}
        gone_until_us = self._gone_until_us(user_ids)
        for user_id, _, written in changes:  # who was erased since the history was read is erased again
            if _after(written.timeline, gone_until_us.get(user_id)) != written.timeline:
                self.store.delete(user_id)
                unsettled.add(user_id)
        return unsettled

    def _gone_until_us(self, user_ids: Sequence[str]) -> dict[str, int]:
        """The moment of each erased user's request."""
        erased, ids = read_erasures(self.release.workspace.erasures), pa.array(user_ids, pa.string())
        rows = zip(user_ids, is_erased(ids, erased).tolist(), erased_until_us(ids, erased).tolist(), strict=True)
        return {user_id: until_us for user_id, is_out, until_us in rows if is_out}

    def _is_waiting(self, user_id: str, progress: Progress) -> bool:
        return not self.is_alone and self.log is not None and bool(self.log.of_user(user_id, after=progress.sequence))

    def _wanted(
        self, user_id: str, held: bytes | None, history: bytes, progress: Progress, *, is_erased: bool
    ) -> _Wanted | RepairedUser:
        stored = self._unpacked(held)
        release_us = self.release.manifest.as_of_us
        moment_us = release_us if stored is None else _as_of_us(stored.body)
        if self.log is None and progress.sequence > 0 and (stored is None or moment_us != release_us):
            return RepairedUser(user_id, "elsewhere")  # what it did online is in a log that is not here
        events = [] if self.log is None else self.log.of_user(user_id, until=progress.sequence)
        events = [event for event in events if event.time_us >= release_us]
        if not history and not events:
            return self._gone(user_id, held) if is_erased else RepairedUser(user_id, "unknown")
        timeline = self.everything.merged(history, events)
        if not events:
            is_refreshed = release_us < moment_us <= progress.as_of_us
            return _Wanted(held, stored, timeline, moment_us if is_refreshed else release_us, is_refreshed)
        newest_us = max(event.time_us for event in events) + 1
        is_plausible = newest_us <= moment_us <= progress.as_of_us
        return _Wanted(held, stored, timeline, moment_us if is_plausible else progress.as_of_us, is_refreshed=True)

    def _gone(self, user_id: str, held: bytes | None) -> RepairedUser:
        if held is not None and not self.dry_run:
            self.store.delete(user_id)
        return RepairedUser(user_id, "erased", (WHOLE_RECORD,) if held is not None else ())

    def _unpacked(self, record: bytes | None) -> StoredProfile | None:
        if record is None:
            return None
        try:
            profile = unpack(record, self.metadata.fingerprint)
            _as_of_us(profile.body)
        except (ArtefactMismatch, ValueError, KeyError, TypeError):
            return None
        return profile

    def _computed(self, wanted: dict[str, _Wanted], users: pa.Table) -> dict[str, StoredProfile]:
        """The record that each user should have."""
        computed: dict[str, StoredProfile] = {}
        for moment in sorted({(entry.as_of_us, entry.is_refreshed) for entry in wanted.values()}):
            same = {user: entry for user, entry in wanted.items() if (entry.as_of_us, entry.is_refreshed) == moment}
            computed |= self._computed_at(same, users, *moment)
        return computed

    def _computed_at(
        self, wanted: dict[str, _Wanted], users: pa.Table, as_of_us: int, is_refreshed: bool
    ) -> dict[str, StoredProfile]:
        """As a build says it, or a refresh: that has the newest events only, and no drivers."""
        kept = {user: entry.timeline[-self.metadata.max_events * EVENT_BYTES :] for user, entry in wanted.items()}
        read = list(kept.values()) if is_refreshed else [entry.timeline for entry in wanted.values()]
        timelines = unpack_timelines(list(wanted), read)
        profiles = self.profiler.profiles(timelines, users, as_of_us=as_of_us, with_drivers=not is_refreshed)
        now_us = time.time_ns() // 1_000
        bodies = to_json_records(profiles, computed_at_us=now_us)
        rows = zip(wanted, bodies, embeddings_of(profiles), kept.values(), strict=True)
        return {user: StoredProfile(now_us, body, embedding, timeline) for user, body, embedding, timeline in rows}


def _after(timeline: bytes, until_us: int | None) -> bytes:
    """A packed timeline without the events up to a moment."""
    if until_us is None:
        return timeline
    events = np.frombuffer(timeline, dtype=EVENT_DTYPE)
    return events[events["time_us"] > until_us].tobytes()


def _as_of_us(body: bytes) -> int:
    content: dict[str, Any] = orjson.loads(body)
    moment = datetime.fromisoformat(content["as_of"])
    return (moment.astimezone(UTC) - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)
