"""The embedded store: LMDB, one file per release, read by every replica of a node through the page cache.

Readers never wait and never see half a write. One environment per process and path (LMDB's rule).
A load commits every 256 MiB and leaves the disk alone until its end: each commit writes most leaves of the tree again,
so a commit a part is ten times as slow at a million users. A machine that went down in between may have kept any part
of it, so the folder holds the machine's boot id until the end, and a load of another boot starts over.
Limits: one writer at a time; a local disk. An open store may grow by 16 GiB before it has to be opened again. What is
deleted is out of reach at once, but its bytes stay in free pages of the file until something is written over them.
"""

from __future__ import annotations

import shutil
import struct
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import lmdb

from sonder.core.errors import ArtefactMismatch, NotFound
from sonder.profiles.store import Progress, StoredProfile, StoreMetadata, key_of, pack, progress_moved, unpack

_METADATA_KEY, _PROGRESS_KEY = b"m", b"a"
_PROGRESS = struct.Struct("<qq")
_PART_PREFIX = b"p"
_GROWTH_BYTES = 1 << 30
_HEADROOM_BYTES = 16 << 30  # of addresses, not of memory or disk: a map that grows would have to be reopened by readers
_LOADING_BYTES = 1 << 40  # the same, for a load, whose transactions cannot grow it
_COMMIT_BYTES = 256 << 20  # half of what LMDB keeps in memory before it starts to spill
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_BOOT_FILE = "boot"


class LmdbStore:
    """A finished store of one release. `open` it; `create` is for the loader."""

    def __init__(self, environment: lmdb.Environment, metadata: StoreMetadata) -> None:
        self._environment = environment
        self._metadata = metadata
        self._fingerprint = metadata.fingerprint
        self._pending: lmdb.Transaction | None = None  # parts of a load that are not committed yet
        self._pending_bytes = 0

    @classmethod
    def open(cls, path: Path, *, release: str, writable: bool = False) -> LmdbStore:
        """Open the store of a release; NotFound if there is none, ArtefactMismatch if it holds another release."""
        if not (path / "data.mdb").is_file():
            raise NotFound(f"No online store at {path}", do="Serving loads it from the release.")
        environment = lmdb.open(
            str(path),
            readonly=not writable,
            map_size=_map_size(path) + _HEADROOM_BYTES,
            max_readers=1024,
            metasync=False,  # a machine that dies may lose the newest refreshes, which the online log repeats
        )
        try:
            with environment.begin() as transaction:
                content = transaction.get(_METADATA_KEY)
            if content is None:
                raise NotFound(f"The online store at {path} was never finished", do="Remove it and load it again.")
            metadata = StoreMetadata.from_json(content)
            if metadata.release != release:
                raise ArtefactMismatch(
                    f"The online store at {path} holds release {metadata.release!r}",
                    expected=f"release {release!r}",
                    do="Remove the store's folder; serving loads it again from the release.",
                )
        except BaseException:
            environment.close()
            raise
        return cls(environment, metadata)

    @classmethod
    def create(cls, path: Path, metadata: StoreMetadata) -> LmdbStore:
        """Open an unfinished store for loading; what an interrupted load of this boot committed is still there."""
        boot = _BOOT_ID.read_text() if _BOOT_ID.is_file() else ""
        file = path / _BOOT_FILE
        if not boot or not file.is_file() or file.read_text() != boot:
            shutil.rmtree(path, ignore_errors=True)
        path.mkdir(parents=True, exist_ok=True)
        file.write_text(boot)
        return cls(lmdb.open(str(path), map_size=_map_size(path) + _LOADING_BYTES, sync=False), metadata)

    def get(self, user_id: str) -> StoredProfile | None:
        with self._begin() as transaction:
            record = transaction.get(key_of(user_id))
        return None if record is None else unpack(record, self._fingerprint)

    def batch_get(self, user_ids: Sequence[str]) -> list[StoredProfile | None]:
        with self._begin() as transaction:
            records = [transaction.get(key_of(user_id)) for user_id in user_ids]
        return [None if record is None else unpack(record, self._fingerprint) for record in records]

    def put_many(self, profiles: Iterable[tuple[str, StoredProfile]]) -> int:
        records = sorted((key_of(user_id), pack(profile, self._fingerprint)) for user_id, profile in profiles)
        self._write(records)
        return len(records)

    def put_refreshed(
        self, profiles: Iterable[tuple[str, StoredProfile]], progress: Progress, *, after: Progress | None = None
    ) -> None:
        records = sorted((key_of(user_id), pack(profile, self._fingerprint)) for user_id, profile in profiles)
        self._write([*records, (_PROGRESS_KEY, _PROGRESS.pack(*progress))], after=after)

    def records(self, user_ids: Sequence[str]) -> list[bytes | None]:
        with self._begin() as transaction:
            return [transaction.get(key_of(user_id)) for user_id in user_ids]

    def put_unchanged(self, changes: Sequence[tuple[str, bytes | None, StoredProfile]]) -> list[str]:
        self._commit()
        while True:
            changed = []
            try:
                with self._environment.begin(write=True) as transaction:
                    for user_id, read, profile in changes:
                        key = key_of(user_id)
                        if transaction.get(key) == read:
                            transaction.put(key, pack(profile, self._fingerprint))
                        else:
                            changed.append(user_id)
                    return changed
            except lmdb.MapFullError:
                self._environment.set_mapsize(int(self._environment.info()["map_size"]) + _GROWTH_BYTES)

    def progress(self) -> Progress:
        with self._begin() as transaction:
            return self._progress(transaction)

    def _progress(self, transaction: Any) -> Progress:
        content = transaction.get(_PROGRESS_KEY)
        return Progress(0, self._metadata.as_of_us) if content is None else Progress(*_PROGRESS.unpack(content))

    def delete(self, user_id: str) -> bool:
        self._commit()
        with self._environment.begin(write=True) as transaction:
            return bool(transaction.delete(key_of(user_id)))

    def put_part(self, name: str, profiles: Iterable[tuple[str, StoredProfile]]) -> int:
        """Write one part and remember that it is done, both or neither; durable after `finish`."""
        records = sorted((key_of(user_id), pack(profile, self._fingerprint)) for user_id, profile in profiles)
        done = len(records)
        if self._pending is None:
            self._pending, self._pending_bytes = self._environment.begin(write=True), 0
        try:
            with self._pending.cursor() as cursor:
                cursor.putmulti([*records, (_part_key(name), str(done).encode())])
        except BaseException:
            self._pending.abort()
            self._pending = None
            raise
        self._pending_bytes += sum(len(record) for _, record in records)
        if self._pending_bytes >= _COMMIT_BYTES:
            self._commit()
        return done

    def loaded(self, name: str) -> int | None:
        """How many profiles of this part are in, None if it was not loaded."""
        self._commit()
        with self._environment.begin() as transaction:
            content = transaction.get(_part_key(name))
        return None if content is None else int(content)

    def finish(self, metadata: StoreMetadata) -> None:
        """Write the metadata, which makes the store openable."""
        self._write([(_METADATA_KEY, metadata.to_json())])
        self._environment.sync(True)
        (Path(self._environment.path()) / _BOOT_FILE).unlink(missing_ok=True)
        self._metadata = metadata

    def metadata(self) -> StoreMetadata:
        return self._metadata

    def num_profiles(self) -> int:
        """Records held now: all keys but those of the loader and of refreshes."""
        with self._environment.begin() as transaction, transaction.cursor() as cursor:
            others = sum(transaction.get(key) is not None for key in (_METADATA_KEY, _PROGRESS_KEY))
            if cursor.set_range(_PART_PREFIX):
                for key in cursor.iternext(values=False):
                    if not key.startswith(_PART_PREFIX):
                        break
                    others += 1
            return int(transaction.stat()["entries"]) - others

    def size_bytes(self) -> int:
        """Bytes of the file."""
        return int(self._environment.stat()["psize"]) * (int(self._environment.info()["last_pgno"]) + 1)

    def close(self) -> None:
        """Closing again does nothing."""
        self._commit()
        self._environment.close()

    def __enter__(self) -> LmdbStore:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @contextmanager
    def _begin(self) -> Iterator[Any]:
        """A reading transaction; where a writer has made the file larger, this process' map follows."""
        try:
            transaction = self._environment.begin()
        except lmdb.MapResizedError:
            self._environment.set_mapsize(0)
            transaction = self._environment.begin()
        with transaction:
            yield transaction

    def _commit(self) -> None:
        if self._pending is not None:
            pending, self._pending = self._pending, None
            pending.commit()

    def _write(self, records: list[tuple[bytes, bytes]], *, after: Progress | None = None) -> None:
        """All records in one transaction; the map grows until they fit."""
        self._commit()
        while True:
            try:
                with self._environment.begin(write=True) as transaction, transaction.cursor() as cursor:
                    if after is not None and (found := self._progress(transaction)) != after:
                        raise progress_moved(found, after)
                    cursor.putmulti(records)
                    return
            except lmdb.MapFullError:
                self._environment.set_mapsize(int(self._environment.info()["map_size"]) + _GROWTH_BYTES)


def _map_size(path: Path) -> int:
    file = path / "data.mdb"
    used = file.stat().st_size if file.is_file() else 0
    return (used // _GROWTH_BYTES + 1) * _GROWTH_BYTES


def _part_key(name: str) -> bytes:
    return _PART_PREFIX + name.encode()
