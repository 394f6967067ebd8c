"""Events that arrive one request at a time -> rows of the contract, or the reason why one is not.

A row is a JSON object: `user_id`, `item_id`, `action`, and optionally `timestamp`, `event_id`, `surface`, `value`,
`request_id`. A row without a timestamp happened now. One with a timestamp and without an id has the digest of what it
says, so that a row sent twice is one event; one without both is an event each time that it is sent.
Reasons are those of the batch path (events.contract.Reason).
Limits: ids of MAX_ID_BYTES; a timestamp may lie MAX_AHEAD_US in the future, as clocks differ.
"""

from __future__ import annotations

import hashlib
import math
import uuid
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

import orjson

from sonder.events.contract import Col, Reason
from sonder.events.timestamps import EARLIEST_US

MAX_ID_BYTES = 512
MAX_AHEAD_US = 5 * 60 * 1_000_000
_TEXTS = (Col.USER_ID, Col.ITEM_ID, Col.ACTION, Col.SURFACE, Col.EVENT_ID, Col.REQUEST_ID)
_NEEDED = (Col.USER_ID, Col.ITEM_ID, Col.ACTION)
_KNOWN = frozenset((*_TEXTS, Col.TIMESTAMP, Col.VALUE))


class OnlineEvent(NamedTuple):
    """One accepted event; what the log keeps, as a JSON list in this order."""

    event_id: str
    user_id: str
    item_id: str
    action: str
    time_us: int
    surface: str | None = None
    value: float | None = None
    request_id: str | None = None
    accepted_us: int = 0

    def to_bytes(self) -> bytes:
        return orjson.dumps(list(self))

    @classmethod
    def from_bytes(cls, content: bytes) -> OnlineEvent:
        return cls(*orjson.loads(content))


class Rejected(NamedTuple):
    """A row that is not an event."""

    row: int  # place in the request, from 0
    reason: str  # events.contract.Reason
    detail: str


class _NotAnEvent(Exception):
    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(detail)
        self.reason, self.detail = reason, detail


def read_events(rows: Sequence[Any], *, now_us: int) -> tuple[list[OnlineEvent], list[Rejected]]:
    """The events among the rows, in order, and every row that is none."""
    events, rejected = [], []
    for index, row in enumerate(rows):
        try:
            events.append(_event(row, now_us))
        except _NotAnEvent as error:
            rejected.append(Rejected(index, error.reason.value, error.detail))
    return events, rejected


def _event(row: Any, now_us: int) -> OnlineEvent:
    if not isinstance(row, Mapping):
        raise _NotAnEvent(Reason.UNPARSABLE, "not an object")
    unknown = [name for name in row if name not in _KNOWN]
    if unknown:
        raise _NotAnEvent(Reason.UNKNOWN_TYPE, f"unknown field {str(unknown[0])[:64]!r}")
    texts = {name: _text(name, row.get(name)) for name in _TEXTS}
    for name in _NEEDED:
        if not texts[name]:
            reason = Reason.ANONYMOUS if name == Col.USER_ID else Reason.MISSING_ID
            raise _NotAnEvent(reason, f"no {name}")
    time_us, value = _time_us(row.get(Col.TIMESTAMP), now_us), _value(row.get(Col.VALUE))
    user_id, item_id, action = (texts[name] or "" for name in _NEEDED)
    event_id = texts[Col.EVENT_ID]
    if not event_id and row.get(Col.TIMESTAMP) is None:
        event_id = uuid.uuid4().hex
    if not event_id:
        said = [user_id, item_id, action, time_us, texts[Col.SURFACE], value]
        event_id = hashlib.blake2b(orjson.dumps(said), digest_size=16).hexdigest()
    return OnlineEvent(
        event_id,
        user_id,
        item_id,
        action,
        time_us,
        texts[Col.SURFACE],
        value,
        texts[Col.REQUEST_ID],
        now_us,
    )


def _text(name: str, value: Any) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str):
        raise _NotAnEvent(Reason.UNKNOWN_TYPE, f"{name} is not a text")
    try:
        size = len(value.encode())
    except UnicodeEncodeError:
        raise _NotAnEvent(Reason.UNKNOWN_TYPE, f"{name} is not Unicode text") from None
    if size > MAX_ID_BYTES:
        raise _NotAnEvent(Reason.OVERLONG_ID, f"{name} has {size} bytes, at most {MAX_ID_BYTES}")
    return value


def _value(value: Any) -> float | None:
    if value is None:
        return None
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not math.isfinite(value):
        raise _NotAnEvent(Reason.UNKNOWN_TYPE, "value is not a finite number")
    return float(value)


def _time_us(value: Any, now_us: int) -> int:
    if value is None:
        return now_us
    if not isinstance(value, str):
        raise _NotAnEvent(Reason.BAD_TIMESTAMP, "timestamp is not an ISO 8601 text")
    try:
        moment = datetime.fromisoformat(value)
        moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
        since = moment - datetime(1970, 1, 1, tzinfo=UTC)
    except (ValueError, OverflowError):
        raise _NotAnEvent(Reason.BAD_TIMESTAMP, f"timestamp {value[:64]!r} is not ISO 8601") from None
    time_us = (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds
    if time_us < EARLIEST_US:
        raise _NotAnEvent(Reason.BAD_TIMESTAMP, "timestamp before 1990")
    if time_us > now_us + MAX_AHEAD_US:
        raise _NotAnEvent(Reason.BAD_TIMESTAMP, "timestamp in the future")
    return time_us
