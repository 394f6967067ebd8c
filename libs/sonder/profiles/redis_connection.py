"""A connection to a Redis or Valkey server: its address without secrets, its time limits, its errors as ours.

Schemes: redis, rediss (TLS), valkey, valkeys (TLS). The password is that of the URL or else that of the environment
variable SONDER_STORE_PASSWORD; no message and no `repr` holds either.
Limits: a server that did not answer is not asked again for a second, so that callers wait for it once and not each.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

import redis
from redis.backoff import ExponentialWithJitterBackoff
from redis.retry import Retry

from sonder.core.errors import ConfigurationError, SonderError, StageUnavailable

PASSWORD_VARIABLE = "SONDER_STORE_PASSWORD"
READ_TIMEOUT_S = 0.5  # and as long for connecting; a request's whole budget is 2 s
LOAD_TIMEOUT_S = 30.0
_PAUSE_S = 1.0  # in which a server that did not answer is not asked again
_REFUSALS = (redis.AuthenticationError, redis.exceptions.AuthorizationError, redis.exceptions.NoPermissionError)


class RedisServer:
    """A client of one server. Threads may share it; connections are made when they are needed."""

    def __init__(self, url: str, *, timeout_s: float, pause_s: float = _PAUSE_S) -> None:
        self.address = address_of(url)
        self._pause_s = pause_s
        self._asked_again_at = 0.0
        try:
            self.client: redis.Redis = redis.Redis.from_url(
                url.replace("valkey", "redis", 1) if url.startswith("valkey") else url,
                password=os.environ.get(PASSWORD_VARIABLE),
                socket_timeout=timeout_s,
                socket_connect_timeout=min(timeout_s, 5.0),
                retry=Retry(ExponentialWithJitterBackoff(base=0.01, cap=0.1), retries=1),
                health_check_interval=30,
            )
        except (ValueError, TypeError) as error:
            raise ConfigurationError(
                f"The address {self.address} of the online store cannot be used", expected="redis://HOST:PORT/DB"
            ) from error

    def __repr__(self) -> str:
        return f"RedisServer({self.address!r})"

    @contextmanager
    def asked(self) -> Iterator[redis.Redis]:
        """The client, for a few commands: StageUnavailable where the server is away, full or read-only."""
        if time.monotonic() < self._asked_again_at:
            raise self._away("did not answer a moment ago")
        try:
            yield self.client
        except redis.RedisError as error:
            if isinstance(error, redis.ConnectionError | redis.TimeoutError) and not isinstance(error, _REFUSALS):
                self._asked_again_at = time.monotonic() + self._pause_s
            raise self._told(error) from _without_arguments(error)

    def close(self) -> None:
        self.client.close()

    def _told(self, error: redis.RedisError) -> SonderError:
        """The server's error as one of ours; never with what was sent, which may name users."""
        kind = type(error).__name__
        if isinstance(error, _REFUSALS) or str(error).startswith("NOAUTH"):
            return ConfigurationError(
                f"The online store at {self.address} refuses this user or password ({kind})",
                expected=f"the password in {PASSWORD_VARIABLE}, a user who may read and write sonder/*",
                do="Set it where the gateway and the loader run.",
            )
        if isinstance(error, redis.exceptions.OutOfMemoryError):
            return StageUnavailable(
                f"The online store at {self.address} is full",
                expected="room for the release: `sonder` tells the size of a store when it has loaded it",
                do="Raise the server's maxmemory, or drop the stores of old releases.",
            )
        if isinstance(error, redis.TimeoutError):
            return self._away("did not answer in time")
        return self._away(f"does not answer ({kind})")

    def _away(self, how: str) -> StageUnavailable:
        return StageUnavailable(
            f"The online store at {self.address} {how}",
            expected="a reachable Redis or Valkey server, version 6 or newer",
            do="Look whether it runs and can be reached from here; reads go on as soon as it answers.",
        )


def address_of(url: str) -> str:
    """The URL without user, password and options."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def _without_arguments(error: redis.RedisError) -> redis.RedisError | None:
    """The cause to show: a server's reply may quote the command, a failure of the network does not."""
    return None if isinstance(error, redis.ResponseError) else error
