"""The networked store: one Redis or Valkey server (or a primary with replicas), shared by the gateways of many nodes.

Keys are `sonder/<layout>/<release>/` and then `u...` or `h...` (a user's record, as every store packs it), `m` (the
metadata, written last), `a` (how far refreshes are), `n` (how many records), `p` (which parts of a load are in) and
`l` (who is loading). So releases stand side by side, and another layout is another set of keys.
A read is one MGET of the metadata and the records: a server that came back empty is NotReady, not a world of unknown
users. For the same reason nothing is loaded into a server that may evict keys.
Limits: not Redis Cluster (a batch is one command); a database is of one workspace; a read waits for the network; one
node accepts online events, whose log the refreshes follow.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from types import TracebackType
from typing import Any, cast

import orjson
from redis.lock import Lock

from sonder.core.errors import ArtefactMismatch, ConfigurationError, NotFound, NotReady
from sonder.profiles.redis_connection import LOAD_TIMEOUT_S, READ_TIMEOUT_S, RedisServer
from sonder.profiles.store import (
    LAYOUT_VERSION,
    Progress,
    StoredProfile,
    StoreMetadata,
    key_of,
    pack,
    progress_moved,
    unpack,
)

_RECORDS_PER_COMMAND = 1_000
_SAMPLED_RECORDS = 256
_LOCK_S = 120.0  # without a sign of life, after which another process may load; longer than a part takes
# Redis runs a script alone: all or nothing, and never into a release that was dropped.
_PUT = """
if redis.call('EXISTS', KEYS[1]) == 0 then return -1 end
local new = 0
for i = 1, #ARGV do
  new = new + 1 - redis.call('EXISTS', KEYS[i + 2])
  redis.call('SET', KEYS[i + 2], ARGV[i])
end
redis.call('INCRBY', KEYS[2], new)
return #ARGV
"""
_REFRESH = """
if redis.call('EXISTS', KEYS[1]) == 0 then return -1 end
local reached = redis.call('GET', KEYS[3]) or ARGV[3]
if ARGV[2] ~= '' and ARGV[2] ~= reached then return -2 end
local new = 0
for i = 4, #ARGV do
  new = new + 1 - redis.call('EXISTS', KEYS[i])
  redis.call('SET', KEYS[i], ARGV[i])
end
redis.call('INCRBY', KEYS[2], new)
redis.call('SET', KEYS[3], ARGV[1])
return #ARGV
"""
_PUT_UNCHANGED = """
if redis.call('EXISTS', KEYS[1]) == 0 then return {-1} end
local changed, new = {}, 0
for i = 3, #KEYS do
  local held = redis.call('GET', KEYS[i])
  if held == ARGV[2 * i - 5] or (held == false and ARGV[2 * i - 5] == '') then
    redis.call('SET', KEYS[i], ARGV[2 * i - 4])
    if held == false then new = new + 1 end
  else
    changed[#changed + 1] = i - 3
  end
end
redis.call('INCRBY', KEYS[2], new)
return changed
"""
_DELETE = """
if redis.call('EXISTS', KEYS[1]) == 0 then return -1 end
local gone = redis.call('DEL', KEYS[3])
redis.call('DECRBY', KEYS[2], gone)
return gone
"""


class RedisStore:
    """The store of one release on a server. `open` a finished one; `create` is for the loader."""

    def __init__(self, server: RedisServer, metadata: StoreMetadata, *, is_finished: bool) -> None:
        self._server, self._metadata, self._is_finished = server, metadata, is_finished
        self._fingerprint = metadata.fingerprint
        self._lock: Lock | None = None
        self._prefix = _prefix(metadata.release)
        scripts = map(server.client.register_script, (_PUT, _REFRESH, _PUT_UNCHANGED, _DELETE))
        self._put, self._refresh, self._put_unchanged, self._delete = scripts

    @classmethod
    def open(cls, url: str, *, release: str) -> RedisStore:
        """Open the store of a release; NotFound if it is not on the server, StageUnavailable if that is away."""
        server = RedisServer(url, timeout_s=READ_TIMEOUT_S)
        try:
            with server.asked() as client:
                content = client.get(_prefix(release) + b"m")
            if content is None:
                raise NotFound(
                    f"No finished store of release {release!r} at {server.address}",
                    do="Serving loads it from the release.",
                )
            metadata = StoreMetadata.from_json(cast("bytes", content))
            if metadata.release != release:
                raise ArtefactMismatch(
                    f"The online store at {server.address} holds release {metadata.release!r}",
                    expected=f"release {release!r}",
                    do="Drop that store; serving loads it again from the release.",
                )
        except BaseException:
            server.close()
            raise
        return cls(server, metadata, is_finished=True)

    @classmethod
    def create(cls, url: str, metadata: StoreMetadata) -> RedisStore:
        """Open an unfinished store for loading; what an interrupted load wrote is still there."""
        server = RedisServer(url, timeout_s=LOAD_TIMEOUT_S, pause_s=0.0)
        try:
            _refuse_eviction(server)
        except BaseException:
            server.close()
            raise
        return cls(server, metadata, is_finished=False)

    def get(self, user_id: str) -> StoredProfile | None:
        return self.batch_get([user_id])[0]

    def batch_get(self, user_ids: Sequence[str]) -> list[StoredProfile | None]:
        keys = [self._prefix + b"m", *(self._prefix + key_of(user_id) for user_id in user_ids)]
        with self._server.asked() as client:
            metadata, *records = cast("list[bytes | None]", client.mget(keys))
        if metadata is None and self._is_finished:
            raise self._lost()
        return [None if record is None else unpack(record, self._fingerprint) for record in records]

    def put_many(self, profiles: Iterable[tuple[str, StoredProfile]]) -> int:
        records = dict(self._packed(profiles))
        with self._server.asked():
            done = int(self._put([self._prefix + b"m", self._prefix + b"n", *records], list(records.values())))
        if done < 0:
            raise self._lost()
        return done

    def put_refreshed(
        self, profiles: Iterable[tuple[str, StoredProfile]], progress: Progress, *, after: Progress | None = None
    ) -> None:
        records = dict(self._packed(profiles))
        keys = [self._prefix + name for name in (b"m", b"n", b"a")]
        expected = b"" if after is None else orjson.dumps(list(after))
        moves = [orjson.dumps(list(progress)), expected, orjson.dumps(list(self._start()))]
        with self._server.asked():
            done = int(self._refresh([*keys, *records], [*moves, *records.values()]))
        if done == -2 and after is not None:
            raise progress_moved(self.progress(), after)
        if done < 0:
            raise self._lost()

    def records(self, user_ids: Sequence[str]) -> list[bytes | None]:
        keys = [self._prefix + b"m", *(self._prefix + key_of(user_id) for user_id in user_ids)]
        with self._server.asked() as client:
            metadata, *records = cast("list[bytes | None]", client.mget(keys))
        if metadata is None:
            raise self._lost()
        return records

    def put_unchanged(self, changes: Sequence[tuple[str, bytes | None, StoredProfile]]) -> list[str]:
        keys = [
            self._prefix + b"m",
            self._prefix + b"n",
            *(self._prefix + key_of(user_id) for user_id, _, _ in changes),
        ]
        pairs = [(read or b"", pack(profile, self._fingerprint)) for _, read, profile in changes]  # none is empty
        with self._server.asked():
            changed = cast("list[int]", self._put_unchanged(keys, [part for pair in pairs for part in pair]))
        if changed == [-1]:
            raise self._lost()
        return [changes[place][0] for place in changed]

    def progress(self) -> Progress:
        with self._server.asked() as client:
            content = client.get(self._prefix + b"a")
        return self._start() if content is None else Progress(*orjson.loads(cast("bytes", content)))

    def _start(self) -> Progress:
        """Of a store that no refresh has written to."""
        return Progress(0, self._metadata.as_of_us)

    def delete(self, user_id: str) -> bool:
        keys = [self._prefix + b"m", self._prefix + b"n", self._prefix + key_of(user_id)]
        with self._server.asked():
            gone = int(self._delete(keys))
        if gone < 0:
            raise self._lost()
        return gone == 1

    @contextmanager
    def loading(self) -> Iterator[None]:
        """Wait until nobody else loads this release, and keep others waiting; `put_part` is the sign of life."""
        lock = self._server.client.lock((self._prefix + b"l").decode(), timeout=_LOCK_S, sleep=0.2)
        with self._server.asked(), lock:
            self._lock = lock
            yield

    def put_part(self, name: str, profiles: Iterable[tuple[str, StoredProfile]]) -> int:
        """A thousand records a command. A part that was cut short is written again: its name comes last."""
        records, done = self._packed(profiles), 0
        with self._server.asked() as client:
            while chunk := dict(islice(records, _RECORDS_PER_COMMAND)):
                client.mset(chunk)
                done += len(chunk)
            client.hset(self._prefix + b"p", name, done)
            if self._lock is not None:
                self._lock.reacquire()
        return done

    def loaded(self, name: str) -> int | None:
        """How many profiles of this part are in, None if it was not loaded."""
        with self._server.asked() as client:
            content = client.hget(self._prefix + b"p", name)
        return None if content is None else int(content)

    def finish(self, metadata: StoreMetadata) -> None:
        """Write the metadata, which makes the store openable."""
        with self._server.asked() as client, client.pipeline(transaction=True) as commands:
            commands.set(self._prefix + b"n", metadata.num_profiles)
            commands.set(self._prefix + b"m", metadata.to_json())
            commands.execute()
        self._metadata, self._is_finished = metadata, True

    def metadata(self) -> StoreMetadata:
        return self._metadata

    def num_profiles(self) -> int:
        with self._server.asked() as client:
            return int(client.get(self._prefix + b"n") or 0)

    def size_bytes(self) -> int:
        """Memory of the records with the server's own cost per key, estimated from 256 of them."""
        num_profiles = self.num_profiles()
        if num_profiles == 0:
            return 0
        with self._server.asked() as client:
            keys = list(islice(client.scan_iter(match=_glob(self._prefix) + b"[uh]*", count=1_000), _SAMPLED_RECORDS))
            with client.pipeline(transaction=False) as commands:
                for key in keys:
                    commands.memory_usage(key)
                sizes = [size for size in commands.execute() if size is not None]
        return round(num_profiles * float(sum(sizes)) / max(1, len(sizes)))

    def close(self) -> None:
        self._server.close()

    def __enter__(self) -> RedisStore:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _packed(self, profiles: Iterable[tuple[str, StoredProfile]]) -> Iterator[tuple[bytes, bytes]]:
        for user_id, profile in profiles:
            yield self._prefix + key_of(user_id), pack(profile, self._fingerprint)

    def _lost(self) -> NotReady:
        return NotReady(
            f"The online store at {self._server.address} no longer holds release {self._metadata.release!r}",
            expected="the release that this gateway opened",
            do="Start serving again, which loads it; keep the server's data across its restarts.",
        )


def drop_release(url: str, release: str) -> int:
    """Remove everything of a release from the server, of every layout; how many keys that were.

    The metadata goes first, so a gateway that still reads it says NotReady at once.
    """
    server, dropped = RedisServer(url, timeout_s=LOAD_TIMEOUT_S, pause_s=0.0), 0
    try:
        with server.asked() as client:
            dropped += int(client.unlink(_prefix(release) + b"m"))
            keys = client.scan_iter(match=b"sonder/*/" + _glob(release.encode()) + b"/*", count=1_000)
            while chunk := list(islice(keys, _RECORDS_PER_COMMAND)):
                dropped += int(client.unlink(*chunk))
    finally:
        server.close()
    return dropped


def _prefix(release: str) -> bytes:
    return f"sonder/{LAYOUT_VERSION}/{release}/".encode()


def _glob(text: bytes) -> bytes:
    """A pattern that matches this text alone."""
    return b"".join(b"\\" + bytes([letter]) if letter in b"*?[]\\" else bytes([letter]) for letter in text)


def _refuse_eviction(server: RedisServer) -> None:
    with server.asked() as client:
        told: dict[str, Any] = client.info("memory")
    policy = str(told.get("maxmemory_policy", ""))
    if policy.startswith("allkeys") and int(told.get("maxmemory", 0)):
        raise ConfigurationError(
            f"The online store at {server.address} evicts keys when it is full ({policy}), users would be forgotten",
            expected="maxmemory-policy noeviction, or one of volatile-*",
            do="Change the server's maxmemory-policy.",
        )
