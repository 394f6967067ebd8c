"""The log of online events on one node: durable before they are accepted, each event once, read in their order.

One LMDB environment per node, `log/online` on its disk, written by every gateway replica and read by all.
events    sequence number (8 bytes, big-endian) -> the event
ids       digest of an event id (16 bytes) -> its sequence number
by_user   digest of a user id (16 bytes) and sequence number -> nothing: the user's events without a scan
adopted   sequence number -> nothing: the event was accepted by another node (sonder.profiles.log_shipping)
A transaction is on disk when `append` returns, so a process or a machine that dies afterwards loses nothing; one that
dies before leaves no trace of the batch. Sequence numbers start at 1 and have no holes but for erased users' events.
Limits: a local disk; ids are remembered as long as their events are kept.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lmdb

from sonder.events.online import OnlineEvent
from sonder.profiles.event_log import Appended

_GROWTH_BYTES = 1 << 30
_DATABASES = (b"events", b"ids", b"by_user", b"erased", b"adopted")


class OnlineLog:
    """Open it once per process and path (LMDB's rule)."""

    def __init__(self, path: Path) -> None:
        path.mkdir(parents=True, exist_ok=True)
        file = path / "data.mdb"
        used = file.stat().st_size if file.is_file() else 0
        size = (used // _GROWTH_BYTES + 1) * _GROWTH_BYTES
        self._environment = lmdb.open(str(path), map_size=size, max_dbs=len(_DATABASES), max_readers=1024)
        databases = map(self._environment.open_db, _DATABASES)
        self._events, self._ids, self._by_user, self._erased, self._adopted = databases

    def append(self, events: Sequence[OnlineEvent]) -> Appended:
        """Write all events that are new, on disk when this returns; those whose id is known change nothing."""
        return self.append_all([events])[0]

    def append_all(self, batches: Sequence[Sequence[OnlineEvent]]) -> list[Appended]:
        """The same for several batches in one write."""
        return self._written(batches, is_adopted=False)

    def adopt(self, events: Sequence[OnlineEvent]) -> int:
        """Append events that another node accepted -> how many are new here; `own_after` leaves them out."""
        return self._written([events], is_adopted=True)[0].accepted

    def _written(self, batches: Sequence[Sequence[OnlineEvent]], *, is_adopted: bool) -> list[Appended]:
        while True:
            try:
                with self._begin(write=True) as transaction:
                    return [self._append(transaction, events, is_adopted) for events in batches]
            except lmdb.MapFullError:
                self._environment.set_mapsize(int(self._environment.info()["map_size"]) + _GROWTH_BYTES)

    def _append(self, transaction: Any, events: Sequence[OnlineEvent], is_adopted: bool) -> Appended:
        sequence, accepted = self._last(transaction), 0
        for event in events:
            key = _key(sequence + 1)
            if not transaction.put(_digest(event.event_id), key, overwrite=False, db=self._ids):
                continue
            sequence, accepted = sequence + 1, accepted + 1
            transaction.put(key, event.to_bytes(), append=True, db=self._events)
            transaction.put(_digest(event.user_id) + key, b"", db=self._by_user)
            if is_adopted:
                transaction.put(key, b"", append=True, db=self._adopted)
        return Appended(accepted, len(events) - accepted)

    def after(self, sequence: int, limit: int) -> list[tuple[int, OnlineEvent]]:
        """The next events in their order, `limit` at most."""
        found = []
        with self._begin() as transaction, transaction.cursor(db=self._events) as cursor:
            if cursor.set_range(_key(sequence + 1)):
                for key, content in cursor:
                    found.append((int.from_bytes(key, "big"), OnlineEvent.from_bytes(content)))
                    if len(found) == limit:
                        break
        return found

    def own_after(self, sequence: int, limit: int) -> tuple[list[tuple[int, OnlineEvent]], int]:
        """The same of those that were accepted here, and the number up to which these were looked through."""
        rows = self.after(sequence, limit)
        with self._begin() as transaction:
            own = [row for row in rows if transaction.get(_key(row[0]), db=self._adopted) is None]
        return own, rows[-1][0] if rows else sequence

    def of_user(self, user_id: str, after: int = 0, until: int | None = None) -> list[OnlineEvent]:
        """The user's events past a sequence number, and up to another if one is given, in their order."""
        with self._begin() as transaction:
            keys = self._keys_of(transaction, _digest(user_id), after)
            if until is not None:
                keys = [key for key in keys if key <= _key(until)]
            return [OnlineEvent.from_bytes(transaction.get(key, db=self._events)) for key in keys]

    def last(self) -> int:
        """Sequence number of the newest event, 0 where none was ever accepted."""
        with self._begin() as transaction:
            return self._last(transaction)

    def erase(self, user_id: str) -> int:
        """Remove a user's events and what remembers them -> how many. Their ids may be used again."""
        digest = _digest(user_id)
        with self._begin(write=True) as transaction:
            keys = self._keys_of(transaction, digest, 0)
            newest = self._last(transaction)
            for key in keys:
                event = OnlineEvent.from_bytes(transaction.get(key, db=self._events))
                transaction.delete(_digest(event.event_id), db=self._ids)
                transaction.delete(digest + key, db=self._by_user)
                transaction.delete(key, db=self._events)
                transaction.delete(key, db=self._adopted)
            # The number of an erased event is never given again: a reader may have gone past it.
            transaction.put(b"newest", _key(newest), db=self._erased)
        return len(keys)

    def size_bytes(self) -> int:
        """Bytes in use."""
        return int(self._environment.stat()["psize"]) * (int(self._environment.info()["last_pgno"]) + 1)

    def close(self) -> None:
        self._environment.close()

    def _keys_of(self, transaction: Any, digest: bytes, after: int) -> list[bytes]:
        keys = []
        with transaction.cursor(db=self._by_user) as cursor:
            if cursor.set_range(digest + _key(after + 1)):
                for key in cursor.iternext(values=False):
                    if not key.startswith(digest):
                        break
                    keys.append(key[len(digest) :])
        return keys

    def _last(self, transaction: Any) -> int:
        newest = transaction.get(b"newest", b"", db=self._erased)
        with transaction.cursor(db=self._events) as cursor:
            key = cursor.key() if cursor.last() else b""
        return max(int.from_bytes(key, "big"), int.from_bytes(newest, "big"))

    @contextmanager
    def _begin(self, write: bool = False) -> Iterator[Any]:
        """A transaction; where another process has made the file larger, this one's map follows."""
        try:
            transaction = self._environment.begin(write=write)
        except lmdb.MapResizedError:
            self._environment.set_mapsize(0)
            transaction = self._environment.begin(write=write)
        with transaction:
            yield transaction


def _key(sequence: int) -> bytes:
    return sequence.to_bytes(8, "big")


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=16).digest()
