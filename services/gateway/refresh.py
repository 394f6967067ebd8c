"""Keeps stored profiles up to date with the online log, in micro-batches; one at work per log and release.

Follows the log in its order. A batch is every event that waits, up to MAX_EVENTS; its users are computed together and
written in one transaction with how far the log has been followed. So whatever dies at any moment, the next start goes
on where the last write ended: no event is lost and none counts twice.
A stage that fails is waited for, with a growing pause; what reads get meanwhile is stored and says its age. After
MAX_TRIES the batch is written with the stored values in the missing parts, so that one bad user cannot stop all others.
A second process waits for the lock of the first: during an update, or where two were started.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from services.gateway.fresh import FreshPath, FreshProfile
from services.gateway.recent import RecentEvents
from sonder.core import metrics
from sonder.profiles.store import Progress, StoredProfile

logger = logging.getLogger("sonder")
MAX_EVENTS = 1_000  # of a micro-batch
MAX_USERS = 128
MAX_TRIES = 5
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 2.0
LOOK_EVERY_S = 0.01
NETWORKED_LOOK_EVERY_S = 0.05  # two round trips each
LEAST_CYCLE_S = 0.05  # a batch costs milliseconds whatever it carries: under load it waits this long for company
_STAGES = frozenset(("embedding", "segmentation", "scoring"))


class Refresher:
    """Applies the log to the store; `run` does it until cancelled."""

    def __init__(
        self,
        recent: RecentEvents,
        fresh: FreshPath,
        *,
        clock_us: Callable[[], int],
        look_every_s: float = LOOK_EVERY_S,
    ) -> None:
        assert recent.log is not None, "refreshed is what arrives in the log"
        self._recent, self._fresh, self._clock_us = recent, fresh, clock_us
        self._log, self._store = recent.log, recent.store
        self._look_every_s, self._tries = look_every_s, 0
        self._is_stopped = False

    def stop(self) -> None:
        """Let `run` end after the micro-batch under way."""
        self._is_stopped = True

    async def run(self, lock: Path | None) -> None:
        """Wait for the lock, then follow the log until stopped.

        None: on many nodes no file is held; the store refuses what a second refresh computed from older records.
        """
        if lock is None:
            await self._follow()
            return
        held = FileLock(str(lock))
        while not _is_acquired(held):
            if self._is_stopped:
                return
            await asyncio.sleep(0.2)
        try:
            await self._follow()
        finally:
            held.release()

    async def _follow(self) -> None:
        loop = asyncio.get_running_loop()
        while not self._is_stopped:
            started = loop.time()
            try:
                applied = await self.step()
            except Exception as error:  # of this batch: what was not written is tried again
                logger.warning("refresh: %s: %s", type(error).__name__, error)
                await asyncio.sleep(min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2**self._tries))
                continue
            pause = self._look_every_s if not applied else max(0.0, LEAST_CYCLE_S - (loop.time() - started))
            await asyncio.sleep(pause)

    async def step(self) -> int:
        """One micro-batch -> the events that it went past, 0 where none waited."""
        progress = await asyncio.to_thread(self._store.progress)
        rows = await asyncio.to_thread(self._log.after, progress.sequence, MAX_EVENTS)
        rows = rows[: _first_users(rows)]
        metrics.set_dirty_users(len({event.user_id for _, event in rows}))
        if not rows:
            return 0
        events = self._recent.applicable(event for _, event in rows)
        user_ids = list(dict.fromkeys(event.user_id for event in events))
        as_of_us = self._recent.as_of_us(progress.as_of_us, events)
        merged = await asyncio.to_thread(self._recent.merged, user_ids, events)
        refreshed = await self._computed(merged, as_of_us) if merged else []
        reached = Progress(rows[-1][0], as_of_us)
        await asyncio.to_thread(self._store.put_refreshed, refreshed, reached, after=progress)
        self._tries = 0
        now_us = self._clock_us()
        for event in events:
            metrics.observe_refresh_lag((now_us - event.accepted_us) / 1e6)
        return len(rows)

    async def _computed(self, merged: dict[str, StoredProfile], as_of_us: int) -> list[tuple[str, StoredProfile]]:
        self._tries += 1
        fresh = await self._fresh.compute(list(merged.items()), 0.0, as_of_us=as_of_us, now_us=self._clock_us())
        failed = {missing["stage"] for profile in fresh for missing in profile.degraded} & _STAGES
        if failed and self._tries < MAX_TRIES:
            raise _StagesFailed(f"{', '.join(sorted(failed))} failed, try {self._tries} of {MAX_TRIES}")
        if failed:
            logger.error("refresh: %d users keep stored parts: %s failed", len(fresh), ", ".join(sorted(failed)))
        return [(user_id, _record(new, kept)) for (user_id, kept), new in zip(merged.items(), fresh, strict=True)]


class _StagesFailed(Exception):
    """Tried again."""


def _record(fresh: FreshProfile, kept: StoredProfile) -> StoredProfile:
    return StoredProfile(fresh.computed_at_us, fresh.body, fresh.embedding, kept.timeline)


def _first_users(rows: list[tuple[int, Any]]) -> int:
    """How many of the first rows belong to MAX_USERS users."""
    users: set[str] = set()
    for place, (_, event) in enumerate(rows):
        users.add(event.user_id)
        if len(users) > MAX_USERS:
            return place
    return len(rows)


def _is_acquired(lock: FileLock) -> bool:
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return False
    return True
