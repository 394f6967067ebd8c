"""The log of online events on a Redis or Valkey server: one for the gateways of all nodes.

Keys, below sonder/log/1/:
n            sequence number of the newest event
e            stream: <sequence>-0 -> the event
i            hash: digest of an event id -> its sequence number
u/<digest>   list of the sequence numbers of a user's events
A batch is one script: in or not. It is accepted when the server has it on disk, so the server must append every write
to its file before it answers (`appendonly yes`, `appendfsync always`); where it says that it does not, no event is
taken. A server that says neither (CONFIG is often forbidden) is trusted, and told of in the log.
Sequence numbers start at the microsecond of the first use: above those of any embedded log that the same store has
followed before, so a change of logs skips no event.
Limits: one server, no Redis Cluster; events lie in its memory, about 400 bytes each, and nothing here removes them.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Sequence
from typing import Any, cast

import redis

from sonder.core.errors import StageUnavailable
from sonder.events.online import OnlineEvent
from sonder.profiles.event_log import Appended
from sonder.profiles.redis_connection import READ_TIMEOUT_S, RedisServer

logger = logging.getLogger("sonder")
WRITE_TIMEOUT_S = 5.0  # an answer waits for the server's disk
_PREFIX = b"sonder/log/1/"
_NEWEST, _EVENTS, _IDS, _USERS = (_PREFIX + name for name in (b"n", b"e", b"i", b"u/"))
_APPEND = """
local accepted = {}
local newest = tonumber(redis.call('GET', KEYS[1]) or ARGV[1])
for i = 2, #ARGV, 2 do
  local event = i / 2
  accepted[event] = 0
  local sequence = string.format('%.0f', newest + 1)
  if redis.call('HSETNX', KEYS[3], ARGV[i], sequence) == 1 then
    newest = newest + 1
    accepted[event] = 1
    redis.call('XADD', KEYS[2], sequence .. '-0', 'b', ARGV[i + 1])
    redis.call('RPUSH', KEYS[event + 3], sequence)
  end
end
redis.call('SET', KEYS[1], string.format('%.0f', newest))
return accepted
"""
_ERASE = """
local sequences = redis.call('LRANGE', KEYS[3], 0, -1)
for i, sequence in ipairs(sequences) do
  redis.call('XDEL', KEYS[1], sequence .. '-0')
end
for i, digest in ipairs(ARGV) do
  redis.call('HDEL', KEYS[2], digest)
end
redis.call('DEL', KEYS[3])
return #sequences
"""


class RedisLog:
    """Threads may share it; connections are made when they are needed."""

    def __init__(self, url: str) -> None:
        self._server = RedisServer(url, timeout_s=READ_TIMEOUT_S)
        self._writer = RedisServer(url, timeout_s=WRITE_TIMEOUT_S)
        self._append_script, self._erase_script = map(self._writer.client.register_script, (_APPEND, _ERASE))
        self._is_durable: bool | None = None  # not asked yet

    def append(self, events: Sequence[OnlineEvent]) -> Appended:
        """One batch."""
        return self.append_all([events])[0]

    def append_all(self, batches: Sequence[Sequence[OnlineEvent]]) -> list[Appended]:
        """StageUnavailable where the server is away or keeps no file; nothing is accepted then."""
        self._require_durable()
        events = [event for batch in batches for event in batch]
        keys = [_NEWEST, _EVENTS, _IDS, *(_user_key(event.user_id) for event in events)]
        arguments: list[Any] = [time.time_ns() // 1000]
        for event in events:
            arguments += [_digest(event.event_id), event.to_bytes()]
        with self._writer.asked():
            is_new = iter(cast("list[int]", self._append_script(keys, arguments)) if events else ())
        counts = [sum(next(is_new) for _ in batch) for batch in batches]
        return [Appended(new, len(batch) - new) for new, batch in zip(counts, batches, strict=True)]

    def after(self, sequence: int, limit: int) -> list[tuple[int, OnlineEvent]]:
        """The next events in their order, `limit` at most."""
        with self._server.asked() as client:
            rows = cast("list[Any]", client.xrange(_EVENTS, min=f"{sequence + 1}-0", count=limit))
        return [(int(name.split(b"-")[0]), OnlineEvent.from_bytes(fields[b"b"])) for name, fields in rows]

    def of_user(self, user_id: str, after: int = 0) -> list[OnlineEvent]:
        """The user's events past a sequence number, in their order."""
        with self._server.asked() as client:
            known = [int(name) for name in cast("list[bytes]", client.lrange(_user_key(user_id), 0, -1))]
            wanted = [sequence for sequence in known if sequence > after]
            if not wanted:
                return []
            with client.pipeline(transaction=False) as commands:
                for sequence in wanted:
                    commands.xrange(_EVENTS, min=f"{sequence}-0", max=f"{sequence}-0")
                found = commands.execute()
        return [OnlineEvent.from_bytes(fields[b"b"]) for rows in found for _, fields in rows]

    def last(self) -> int:
        """Sequence number of the newest event, 0 where none was ever accepted."""
        with self._server.asked() as client:
            return int(cast("bytes | None", client.get(_NEWEST)) or 0)

    def erase(self, user_id: str) -> int:
        """Remove a user's events and what remembers them -> how many. Their ids may be used again."""
        digests = [_digest(event.event_id) for event in self.of_user(user_id)]
        with self._writer.asked():
            return int(self._erase_script([_EVENTS, _IDS, _user_key(user_id)], digests))

    def close(self) -> None:
        self._server.close()
        self._writer.close()

    def _require_durable(self) -> None:
        if self._is_durable is None:
            with self._server.asked() as client:
                self._is_durable = _is_durable(client)
        if not self._is_durable:
            self._is_durable = None  # whoever corrects the server's settings need not start the gateways again
            raise StageUnavailable(
                f"The server at {self._server.address} would forget accepted events when it dies",
                expected="appendonly yes and appendfsync always",
                do="Set both with CONFIG SET, and in its configuration file; events are taken from then on.",
            )


def _is_durable(client: redis.Redis) -> bool:
    """Whether the server has a write on disk before it answers; one that does not say is trusted."""
    try:
        told = cast("dict[str, str]", client.config_get("append*"))
    except redis.ResponseError:
        logger.warning("the server of online events does not say whether it keeps a file: taken for durable")
        return True
    return told.get("appendonly") == "yes" and told.get("appendfsync") == "always"


def _user_key(user_id: str) -> bytes:
    return _USERS + _digest(user_id)


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=16).digest()
