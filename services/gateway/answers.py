"""The bytes of an answer: a stored or fresh profile cut to what was asked for, its envelope in front.

Every answer carries `release`, `age_ms`, `as_of` and `computed_at`; `degraded` where a part could not be computed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import orjson

from services.gateway.memberships import Audiences
from sonder.core import metrics
from sonder.profiles.attributes import FACTS
from sonder.profiles.record import Pieces, cut, splice
from sonder.profiles.store import StoredProfile

ENVELOPE = ("user_id", "is_cold", "cold_reason", "as_of", "computed_at")
PARTS = ("num_events", "first_seen", "last_seen", "segments", "interests", "affinities", "scores", *FACTS, "embedding")
FIELDS = (*PARTS, "audiences")  # these are kept apart from the profile: they change between releases


def now_us() -> int:
    """The wall clock: for ages and `computed_at`, never for what is computed."""
    return time.time_ns() // 1000


def asks_audiences(fields: Sequence[str] | None) -> bool:
    """Whether these fields, or all for None, have the audiences among them."""
    return fields is None or "audiences" in fields


class Answers:
    """Of one release."""

    def __init__(self, release: str, clock_us: Callable[[], int] = now_us) -> None:
        self._release, self._clock_us = release.encode(), clock_us

    def profile(
        self,
        stored: StoredProfile,
        fields: Sequence[str] | None,
        degraded: Sequence[dict[str, Any]] = (),
        *,
        audiences: Audiences | None = None,
    ) -> bytes:
        """A profile, or these of its fields; with what could not be computed, and the user's audiences where asked."""
        return b"".join(self.pieces(stored, fields, degraded, audiences=audiences))

    def pieces(
        self,
        stored: StoredProfile,
        fields: Sequence[str] | None,
        degraded: Sequence[dict[str, Any]] = (),
        *,
        audiences: Audiences | None = None,
    ) -> Pieces:
        """The same in pieces that are to be joined."""
        body, also = stored.body, b""
        if fields is not None:
            body = cut(body, fields)
            if "embedding" in fields:
                vector = np.frombuffer(stored.embedding, dtype="<f4") if stored.embedding else None
                body = b'%b,"embedding":%b}' % (body[:-1], orjson.dumps(vector, option=orjson.OPT_SERIALIZE_NUMPY))
        if audiences is not None:
            also = b'"audiences":%b,' % audiences.to_json()
            degraded = (*degraded, *audiences.degraded)
        if degraded:
            for missing in degraded:
                metrics.DEGRADED.labels(missing["stage"]).inc()
            also = b'"degraded":%b,%b' % (orjson.dumps(list(degraded)), also)
        return splice(
            body,
            release=self._release,
            computed_at_us=stored.computed_at_us,
            now_us=self._clock_us(),
            also=also,
        )

    def parts(self, stored: StoredProfile, content: Mapping[str, Any], degraded: Sequence[dict[str, Any]]) -> bytes:
        """The envelope of a profile around something that is not part of it."""
        envelope = self.profile(stored, (), degraded)
        return b"%b,%b" % (envelope[:-1], orjson.dumps(content)[1:])

    def observe_age(self, computed_at_us: int) -> None:
        """Tell the metrics how old a profile was when it was read."""
        metrics.AGE_AT_READ_SECONDS.observe(max(0, self._clock_us() - computed_at_us) / 1e6)
