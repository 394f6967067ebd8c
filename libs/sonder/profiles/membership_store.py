"""Who is in which audience, by user: an embedded store beside the profiles' one, read in one get.

It is LMDB again and not a part of a profile's record, because audiences are refreshed between releases and records
never change; not sorted arrays, because those cost a search for each audience where a key costs one for all of them.
store/audiences/<digest>/ holds what the evaluations of one `audience_index` say together, and is complete or absent:
it is loaded under `<digest>.loading` and renamed. So it has no pointer of its own: who reads the index knows the name.
A record: for each audience of the user its number (uint32) in the metadata and entered_at (int64 microseconds).
Processes that find it missing wait for one another; the first one loads. The newest two are kept.
Limits: the whole is loaded again after each refresh, from all evaluations; memory is one bucket of one audience.
"""

from __future__ import annotations

import shutil
import struct
import threading
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import lmdb
import orjson
import polars as pl
from filelock import FileLock

from sonder.core import telemetry
from sonder.core.errors import NotFound
from sonder.core.storage import Folder
from sonder.profiles.memberships import Membership
from sonder.profiles.record import iso_time
from sonder.profiles.store import key_of
from sonder.segments.audience_index import AudienceIndex
from sonder.segments.audiences import current_members

_RECORD = struct.Struct(">Iq")  # big-endian: LMDB keeps the audiences of a user in the order of their numbers
_MEMBERS, _AUDIENCES_KEY = b"members", b"audiences"
_GROWTH_BYTES = 1 << 28
_KEPT = 2
_told_time = lru_cache(maxsize=4096)(iso_time)  # as many different ones as there were refreshes


class MembershipStore:
    """A finished store; reads from several threads are safe, also against `close`."""

    def __init__(self, environment: lmdb.Environment, path: str) -> None:
        self._path = path
        self._environment: lmdb.Environment | None = environment
        self._closing = threading.Lock()
        self._members = environment.open_db(_MEMBERS, create=False)
        with environment.begin() as transaction:
            content = transaction.get(_AUDIENCES_KEY)
        assert content is not None, "a store is renamed when it is complete"
        self._audiences = [(entry["name"], entry["version"], entry["as_of"]) for entry in orjson.loads(content)]

    @classmethod
    def open(cls, path: Path) -> MembershipStore:
        """NotFound if there is none."""
        if not (path / "data.mdb").is_file():
            raise NotFound(f"No memberships at {path}", do="`sonder audience refresh` loads them.")
        name = str(path.resolve())
        environment = _taken(name)
        try:
            return cls(environment, name)
        except BaseException:
            _given_back(name)
            raise

    def get(self, user_id: str) -> list[Membership]:
        """By name; none for a user who is in no audience."""
        return self.batch_get([user_id])[0]

    def batch_get(self, user_ids: Sequence[str]) -> list[list[Membership]]:
        """In the order asked for, from one consistent view."""
        keys = [key_of(user_id) for user_id in user_ids]
        with self._closing:
            if self._environment is None:
                raise NotFound("These memberships were closed", do="Open the newest ones.")
            with self._environment.begin(db=self._members) as transaction, transaction.cursor() as cursor:
                found = [list(cursor.iternext_dup()) if cursor.set_key(key) else [] for key in keys]
        return [[self._membership(record) for record in records] for records in found]

    def close(self) -> None:
        with self._closing:
            if self._environment is not None:
                _given_back(self._path)
            self._environment = None

    def _membership(self, record: bytes) -> Membership:
        number, entered_at_us = _RECORD.unpack(record)
        name, version, as_of = self._audiences[number]
        return Membership(name, version, _told_time(entered_at_us), as_of, "refresh")


_open: dict[str, tuple[lmdb.Environment, int]] = {}  # by path: a process may open one only once (LMDB's rule)
_opening = threading.Lock()


def _taken(path: str) -> lmdb.Environment:
    """The environment at a path, shared by all in this process who read it: engines of several releases do."""
    with _opening:
        environment, num_readers = _open.get(path, (None, 0))
        if environment is None:
            environment = lmdb.open(path, readonly=True, max_dbs=1, max_readers=1024)
        _open[path] = environment, num_readers + 1
        return environment


def _given_back(path: str) -> None:
    """Closed when its last reader is."""
    with _opening:
        environment, num_readers = _open.pop(path)
        if num_readers > 1:
            _open[path] = environment, num_readers - 1
        else:
            environment.close()


def ensure_memberships(stores: Path, audiences: Folder, index: AudienceIndex) -> Path:
    """The store of what the index counts, below `stores`; loaded first where this machine has none yet."""
    target = stores / index.members_digest
    stores.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{stores}.lock"):
        if not target.is_dir():
            _load(target, audiences, index)
            _drop_others(target)
    return target


def _load(target: Path, audiences: Folder, index: AudienceIndex) -> None:
    loading = target.with_name(f"{target.name}.loading")
    shutil.rmtree(loading, ignore_errors=True)
    counted = index.counted
    entries = [{"name": name, "version": entry.version, "as_of": entry.as_of} for name, entry in counted.items()]
    num_members = 0
    with telemetry.stage("load memberships", audiences=len(counted)) as told:
        # Nothing of an interrupted load is used, so the disk need not hear of each step.
        with lmdb.open(str(loading), map_size=_GROWTH_BYTES, max_dbs=1, sync=False) as environment:
            members = environment.open_db(_MEMBERS, dupsort=True, dupfixed=True)
            for number, (name, entry) in enumerate(counted.items()):
                for records in _parts(audiences / name / "members" / entry.evaluation, number):
                    _write(environment, members, records)
                    num_members += len(records)
            _write(environment, None, [(_AUDIENCES_KEY, orjson.dumps(entries))])
            environment.sync(True)
        (loading / "lock.mdb").unlink(missing_ok=True)
        loading.rename(target)
        told.update(members=num_members)


def _parts(evaluation: Folder, number: int) -> Iterator[list[tuple[bytes, bytes]]]:
    """Records of the members of each file, by key."""
    for file in (name for name in evaluation.files() if name.endswith(".parquet")):
        inside = current_members((evaluation / file).read_table())
        entered_us = pl.Series(inside.column("entered_at")).dt.epoch("us").to_list()
        rows = zip(inside.column("user_id").to_pylist(), entered_us, strict=True)
        yield sorted((key_of(user_id), _RECORD.pack(number, entered)) for user_id, entered in rows)


def _write(environment: lmdb.Environment, database: Any, records: list[tuple[bytes, bytes]]) -> None:
    """All records in one transaction; the map grows until they fit."""
    while True:
        try:
            with environment.begin(write=True, db=database) as transaction, transaction.cursor() as cursor:
                cursor.putmulti(records, dupdata=True)
                return
        except lmdb.MapFullError:
            environment.set_mapsize(int(environment.info()["map_size"]) + _GROWTH_BYTES)


def _drop_others(target: Path) -> None:
    """All but this and the one before; who has another one open keeps reading it."""
    others = [folder for folder in target.parent.iterdir() if folder != target]
    finished = sorted((folder for folder in others if folder.suffix != ".loading"), key=lambda f: f.stat().st_mtime)
    for folder in [*finished[: -(_KEPT - 1)], *(folder for folder in others if folder.suffix == ".loading")]:
        shutil.rmtree(folder, ignore_errors=True)
