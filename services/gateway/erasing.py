"""Erasure of a user: out of log, store and exposures, out of every answer, and out of the next build.

The tombstone is written first, so a process that dies in between leaves an erasure that can be repeated and not a user
half erased in silence. A refresh that read the user before may still write it back once; it is waited for, and the
record deleted again. What other parts hold in memory (similar users, saved audiences, samples) is filtered from their
answers by the tombstone until they are loaded anew.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from sonder.core.storage import Folder
from sonder.core.watching import Watched
from sonder.events.erasure import CHANGED, is_erased, read_erasures, record_erasure
from sonder.experiments.exposure_files import erase_rows
from sonder.profiles.event_log import EventLog
from sonder.profiles.log_shipping import erase_shipped
from sonder.profiles.store import ProfileStore

LOOK_EVERY_S = 2.0
REFRESH_WAIT_S = 10.0  # longer than a refresh under way takes


class Erasures:
    """The tombstones of a workspace, as other gateways and commands write them too."""

    def __init__(self, folder: Folder, copies: Sequence[Folder] = (), experiments: Folder | None = None) -> None:
        """`copies` of the online log in files; `experiments`: who was exposed to what; both are reached too."""
        self._folder, self._copies, self._experiments = folder, copies, experiments
        self._erased = Watched(folder / CHANGED, lambda: read_erasures(folder), every_s=LOOK_EVERY_S)

    def add(self, user_id: str, *, at_us: int) -> None:
        record_erasure(self._folder, user_id, at_us=at_us)
        self._erased.look()

    def take_out(self, user_id: str) -> int:
        """Events of the user out of what nodes have shipped and builds archived -> the most of one of them."""
        return max((erase_shipped(copy, user_id, self._folder) for copy in self._copies), default=0)

    def take_out_exposures(self, user_id: str) -> int:
        """Rows of the user out of the tables of experiments -> how many."""
        return 0 if self._experiments is None else erase_rows(self._experiments, user_id)

    def hold(self, user_ids: Sequence[str]) -> list[bool]:
        """Which of the users were erased at any time; a list of a few seconds ago is asked."""
        erased = self._erased.value
        if not erased:
            return [False] * len(user_ids)
        found: list[bool] = is_erased(pa.array(user_ids, pa.string()), erased).tolist()
        return found

    def close(self) -> None:
        self._erased.close()


@dataclass(frozen=True)
class Receipt:
    """What an erasure found and removed."""

    profile_removed: bool
    events_removed: int  # of the node's log, or of a copy of it in files where that were more
    exposures_removed: int  # rows of experiments: who was exposed to what, and shown what
    refresh_awaited: bool  # nothing that was under way can write the user back


async def erase(
    user_id: str, erasures: Erasures, stores: Sequence[ProfileStore], log: EventLog, *, now_us: int
) -> Receipt:
    """Erase a user from what is served, the stores of all served releases; repeating it is harmless."""
    await asyncio.to_thread(erasures.add, user_id, at_us=now_us)
    accepted = await asyncio.to_thread(log.last)
    events = await asyncio.to_thread(log.erase, user_id)
    shipped = await asyncio.to_thread(erasures.take_out, user_id)
    exposures = await asyncio.to_thread(erasures.take_out_exposures, user_id)
    found = await asyncio.to_thread(_delete, user_id, stores)
    awaited = all(await asyncio.gather(*(_reached(store, accepted) for store in stores)))
    found = await asyncio.to_thread(_delete, user_id, stores) or found
    return Receipt(found, max(events, shipped), exposures, awaited)


def _delete(user_id: str, stores: Sequence[ProfileStore]) -> bool:
    found = [store.delete(user_id) for store in stores]  # of every one, whatever the first said
    return any(found)


async def _reached(store: ProfileStore, sequence: int) -> bool:
    """Wait until refreshes have gone past what was accepted before; False where that takes too long."""
    deadline = time.monotonic() + REFRESH_WAIT_S
    while (await asyncio.to_thread(store.progress)).sequence < sequence:
        if time.monotonic() > deadline:
            return False
        await asyncio.sleep(0.02)
    return True


def told(receipt: Receipt, *, release: str, erased_at: str) -> dict[str, Any]:
    """The receipt as it is answered."""
    return {
        "erased_at": erased_at,
        "release": release,
        "profile_removed": receipt.profile_removed,
        "events_removed": receipt.events_removed,
        "exposures_removed": receipt.exposures_removed,
        "refresh_awaited": receipt.refresh_awaited,
        "remaining": "releases, snapshots and backups that exist already, until they are removed; no later build reads "
        "what the user did before this moment",
    }
