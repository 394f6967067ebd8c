"""The event: one row, eight fields. Every log is mapped onto this and nothing downstream sees any other shape.

`log_order` is where the row stood in the log (file, then row); ties in time are broken by it, everywhere.
"""

from __future__ import annotations

from enum import StrEnum

import pyarrow as pa

TIMESTAMP_TYPE = pa.timestamp("us", tz="UTC")


class Col:
    """Column names of the contract; the only place where they are spelled."""

    USER_ID = "user_id"
    ITEM_ID = "item_id"
    ACTION = "action"
    TIMESTAMP = "timestamp"
    EVENT_ID = "event_id"
    SURFACE = "surface"
    VALUE = "value"
    REQUEST_ID = "request_id"
    LOG_ORDER = "log_order"
    # of the history snapshot
    EVENT_KEY = "event_key"
    NUM_EVENTS = "num_events"
    # of the item table
    ITEM_INDEX = "item_index"
    CATEGORY = "category"
    TITLE = "title"
    FIRST_SEEN = "first_seen"
    LAST_SEEN = "last_seen"
    VECTOR = "vector"
    # of the user table
    SIGNUP_AT = "signup_at"
    ATTRIBUTES = "attributes"
    CONSENT = "consent"


class Reason(StrEnum):
    """Why a row is not an event. The first six are bad rows; the last two are set aside and never fail a job."""

    UNPARSABLE = "unparsable"  # not a row of the file's format at all
    MISSING_ID = "missing_id"  # no item_id or no action
    BAD_TIMESTAMP = "bad_timestamp"  # unparsable, before 1990, in the future
    UNKNOWN_TYPE = "unknown_type"  # a field is a list, an object, not a number, not UTF-8
    OVERLONG_ID = "overlong_id"
    DUPLICATE = "duplicate_event_id"
    ANONYMOUS = "anonymous"  # no user_id: belongs to nobody's history
    BOT = "bot"  # its user passed max_events_per_day

    @property
    def is_bad(self) -> bool:
        return self not in (Reason.ANONYMOUS, Reason.BOT)


EVENT_SCHEMA = pa.schema(
    [
        pa.field(Col.USER_ID, pa.large_string(), nullable=False),
        pa.field(Col.ITEM_ID, pa.large_string(), nullable=False),
        pa.field(Col.ACTION, pa.large_string(), nullable=False),
        pa.field(Col.TIMESTAMP, TIMESTAMP_TYPE, nullable=False),
        pa.field(Col.EVENT_ID, pa.large_string()),  # null: derived in the history from the row and its occurrence
        pa.field(Col.SURFACE, pa.large_string()),
        pa.field(Col.VALUE, pa.float64()),
        pa.field(Col.REQUEST_ID, pa.large_string()),
        pa.field(Col.LOG_ORDER, pa.int64(), nullable=False),
    ]
)

ATTRIBUTES_TYPE = pa.list_(pa.struct([("name", pa.string()), ("value", pa.string())]))
CONSENT_TYPE = pa.list_(pa.struct([("name", pa.string()), ("granted", pa.bool_())]))
USER_SCHEMA = pa.schema(
    [
        pa.field(Col.USER_ID, pa.string(), nullable=False),
        pa.field(Col.SIGNUP_AT, TIMESTAMP_TYPE),
        pa.field(Col.ATTRIBUTES, ATTRIBUTES_TYPE, nullable=False),  # those that the user has, as configured
        pa.field(Col.CONSENT, CONSENT_TYPE, nullable=False),  # purposes on which the user is known to have decided
    ]
)

QUARANTINE_SCHEMA = pa.schema(
    [
        pa.field("source", pa.large_string(), nullable=False),  # the file
        pa.field(Col.LOG_ORDER, pa.int64(), nullable=False),
        pa.field("reason", pa.large_string(), nullable=False),
        pa.field("detail", pa.large_string()),  # the offending field and value, cut to 200 characters
        pa.field("row", pa.large_string()),  # the whole row as JSON, as it was read
    ]
)
