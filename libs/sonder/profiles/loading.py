"""Profiles of a release and the histories they were made from -> a new online store, complete or absent.

The embedded store is loaded under `<release>.loading` and renamed to `<release>` when every part is in, the networked
one gets its metadata last, so a reader never sees half of one. A part is one history bucket: a killed load goes on at
the first part that is missing. Processes that start together wait for one another; the first one loads.
Limits: of a user's timeline the newest MAX_EVENTS are kept (24 bytes each); a fresh computation says so when it is cut.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import zip_longest
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from filelock import FileLock

from sonder.core import telemetry
from sonder.core.errors import ArtefactMismatch, NotFound
from sonder.core.storage import Folder
from sonder.events.erasure import Erased, digest_of, is_erased
from sonder.history.snapshot import read_timelines
from sonder.history.timelines import Timelines
from sonder.history.vocabulary import Vocabulary
from sonder.profiles.lmdb_store import LmdbStore
from sonder.profiles.packing import pack_timelines
from sonder.profiles.record import embeddings_of, to_json_records
from sonder.profiles.redis_store import RedisStore
from sonder.profiles.store import LoadingStore, ProfileStore, StoredProfile, StoreMetadata

MAX_EVENTS = 2_000
_READERS = 2  # parts read at once, beside the one that is written


@dataclass(frozen=True)
class StoreSource:
    """What one release's store is made from."""

    release: str
    profiles: Folder  # bucket=NNN/part-0.parquet of PROFILE_SCHEMA
    snapshot: Folder  # the history the profiles were computed from
    vocabulary: Vocabulary  # of the release: timelines are kept in its indices
    as_of_us: int
    computed_at_us: int
    dim: int
    erased: Erased = field(default_factory=dict)  # users whose records are not loaded


def ensure_store(target: Path, source: StoreSource, *, writable: bool = False) -> LmdbStore:
    """Open the embedded store of the release at `target`, loading it first where it does not exist."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{target}.lock"):
        if not target.is_dir():
            loading = target.with_name(f"{target.name}.loading")
            with LmdbStore.create(loading, _unfinished(source)) as store:
                _load(store, source)
            (loading / "lock.mdb").unlink(missing_ok=True)
            loading.rename(target)
    return LmdbStore.open(target, release=source.release, writable=writable)


def ensure_networked_store(url: str, source: StoreSource) -> RedisStore:
    """Open the store of the release on the server at `url`, loading it first where the server has none."""
    with suppress(NotFound):
        return RedisStore.open(url, release=source.release)
    with RedisStore.create(url, _unfinished(source)) as store, store.loading():
        with suppress(NotFound):  # whoever was waited for has loaded it
            return RedisStore.open(url, release=source.release)
        _load(store, source)
    return RedisStore.open(url, release=source.release)


def drop_erased(store: ProfileStore, profiles: Folder, erased: Erased) -> int:
    """Delete the records of users erased after a load had read who was -> how many.

    A record that was computed after its user's erasure is of a new beginning, and stays.
    """
    if not erased:
        return 0
    num_deleted = 0
    for name in _parts(profiles):
        user_ids = (profiles / name).read_table(["user_id"]).column(0)
        gone = user_ids.filter(pa.array(is_erased(user_ids, erased))).to_pylist()
        for user_id, stored in zip(gone, store.batch_get(gone) if gone else (), strict=True):
            if stored is not None and stored.computed_at_us <= erased[digest_of(user_id)]:
                num_deleted += store.delete(user_id)
    return num_deleted


def _unfinished(source: StoreSource) -> StoreMetadata:
    return StoreMetadata(source.release, source.as_of_us, source.dim, MAX_EVENTS, num_profiles=0)


def _load(store: LoadingStore, source: StoreSource) -> None:
    parts = _parts(source.profiles)
    with telemetry.stage("load store", release=source.release, parts=len(parts)) as counts:
        loaded = {name: store.loaded(name) for name in parts}
        missing = [name for name, num_profiles in loaded.items() if num_profiles is None]
        for name, profiles in _read_ahead(source, missing):
            loaded[name] = store.put_part(name, profiles)
        num_profiles = sum(filter(None, loaded.values()))
        store.finish(replace(_unfinished(source), num_profiles=num_profiles))
        counts.update(profiles=num_profiles, size_bytes=store.size_bytes())


def _read_ahead(source: StoreSource, names: list[str]) -> Iterator[tuple[str, list[tuple[str, StoredProfile]]]]:
    """Each part in turn while the next ones are read in threads: reading costs most, mostly outside of Python."""

    def read(name: str) -> list[tuple[str, StoredProfile]]:
        return list(_part(source, name))

    with ThreadPoolExecutor(_READERS, thread_name_prefix="read-profiles") as readers:
        upcoming = deque(readers.submit(read, name) for name in names[:_READERS])
        for name, later in zip_longest(names, names[_READERS:]):
            profiles = upcoming.popleft().result()
            if later is not None:
                upcoming.append(readers.submit(read, later))
            yield name, profiles


def _parts(profiles: Folder) -> list[str]:
    parts = [name for name in profiles.files() if name.endswith(".parquet")]
    if not parts:
        raise NotFound(
            f"No profiles at {profiles}", expected="bucket=NNN/part-0.parquet", do="Build the release again."
        )
    return parts


def _part(source: StoreSource, name: str) -> Iterator[tuple[str, StoredProfile]]:
    """Records of the users of one profiles file, each with its timeline."""
    profiles = (source.profiles / name).read_table()
    user_ids = profiles.column("user_id").combine_chunks()
    timelines = read_timelines(source.snapshot, source.vocabulary, [_bucket(name)])
    timelines = align(timelines.before(source.as_of_us).last(MAX_EVENTS), user_ids)
    bodies = to_json_records(profiles, computed_at_us=source.computed_at_us)
    fields = zip(user_ids.to_pylist(), bodies, embeddings_of(profiles), pack_timelines(timelines), strict=True)
    gone = is_erased(user_ids, source.erased).tolist()
    for (user_id, body, embedding, timeline), is_gone in zip(fields, gone, strict=True):
        if not is_gone:
            yield user_id, StoredProfile(source.computed_at_us, body, embedding, timeline)


def align(timelines: Timelines, user_ids: pa.Array) -> Timelines:
    """The timelines of these users, in this order; ArtefactMismatch if one has none."""
    rows = pc.index_in(user_ids, value_set=timelines.user_ids)
    if rows.null_count:
        missing = user_ids.filter(rows.is_null())[0].as_py()
        raise ArtefactMismatch(
            f"{rows.null_count} profiles without a history, the first of user {missing!r}",
            expected="the profiles of a release and the snapshot they were made from",
            do="Build the release again.",
        )
    return timelines.take(rows.to_numpy().astype(np.int64))


def _bucket(name: str) -> int:
    folder = name.split("/")[0]
    number = folder.removeprefix("bucket=")
    if folder == number or not number.isdigit():
        raise ArtefactMismatch(f"Profiles in {name!r}", expected="bucket=NNN/part-0.parquet, as in the history")
    return int(number)
