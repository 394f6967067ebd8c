"""The profile: everything known of one user, as a row of Parquet and as the JSON that HTTP answers with.

`assemble_profiles` joins the outputs of the stages (whole tables, no per-row Python); batch build and `?fresh=true`
call the same function. `to_json_records` renders rows to the bytes that the online store keeps ready.

JSON fields, in this order: user_id, is_cold, cold_reason (null unless cold), as_of (what was known: events before
it), computed_at (when this was derived), num_events, first_seen, last_seen, segments, interests, affinities, scores,
signup_at, attributes and consent (objects {name: value}; null for a user without a row in the user table). The
embedding is kept apart (`?fields=embedding`). At read time `release` and `age_ms` (now minus computed_at) are spliced
in front.
Times are ISO 8601 in UTC, weights and scores have float32 precision, days are days of 24 hours before as_of.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from datetime import UTC, datetime
from itertools import pairwise

import numpy as np
import orjson
import polars as pl
import pyarrow as pa

from sonder.core.storage import Folder
from sonder.events.contract import TIMESTAMP_TYPE
from sonder.profiles.attributes import FACT_FIELDS, FACTS, stored_facts, with_all_facts, with_objects

Pieces = tuple[bytes, memoryview]
UNKNOWN_USER = "unknown_user"  # this release has never seen the user
NO_WANTED_EVENTS = "no_wanted_events"  # events, but none that says what the user wants of the items known
COLD_LIFECYCLE = "cold"

_INTEREST = pa.struct(
    [
        ("rank", pa.int16()),
        ("name", pa.string()),
        ("medoid_item_id", pa.string()),
        ("title", pa.string()),
        ("category", pa.string()),
        ("weight", pa.float32()),
        ("num_events", pa.int32()),
        ("events_per_week", pa.float32()),
        ("first_at", TIMESTAMP_TYPE),
        ("last_at", TIMESTAMP_TYPE),
        ("recency_days", pa.float32()),
        ("state", pa.string()),  # and its evidence, as interests.states judges it:
        ("recent_days", pa.float32()),
        ("num_recent", pa.int32()),
        ("recent_share", pa.float32()),
        ("earlier_share", pa.float32()),
    ]
)
_AFFINITY = pa.struct(  # by level, then falling strength
    [
        ("category", pa.string()),
        ("level", pa.int8()),
        ("share", pa.float32()),
        ("lift", pa.float32()),
        ("strength", pa.float32()),
        ("evidence", pa.float32()),
        ("against", pa.float32()),
    ]
)
_DRIVER = pa.struct([("reason", pa.string()), ("contribution", pa.float32())])
_SCORE = pa.struct(
    [("name", pa.string()), ("value", pa.float32()), ("base_rate", pa.float32()), ("drivers", pa.list_(_DRIVER))]
)
_SEGMENTS = pa.struct(
    [
        ("lifecycle", pa.string()),
        ("since", TIMESTAMP_TYPE),  # entered this state
        ("active_days", pa.int32()),  # of the lifecycle's window
        ("tenure_days", pa.float32()),  # since the first event
        ("recency_days", pa.float32()),  # since the last one
        ("cluster_id", pa.int16()),  # behaviour cluster; null without a vector
        ("cluster", pa.string()),  # its name in this release
    ]
)

PROFILE_SCHEMA = pa.schema(
    [
        pa.field("user_id", pa.string(), nullable=False),
        pa.field("as_of", TIMESTAMP_TYPE, nullable=False),
        pa.field("is_cold", pa.bool_(), nullable=False),
        pa.field("cold_reason", pa.string()),
        pa.field("num_events", pa.int32(), nullable=False),
        pa.field("first_seen", TIMESTAMP_TYPE),
        pa.field("last_seen", TIMESTAMP_TYPE),
        pa.field("segments", _SEGMENTS, nullable=False),
        pa.field("interests", pa.list_(_INTEREST), nullable=False),
        pa.field("affinities", pa.list_(_AFFINITY), nullable=False),
        pa.field("scores", pa.list_(_SCORE), nullable=False),
        *FACT_FIELDS,  # of the user table
        pa.field("embedding", pa.list_(pa.float32())),  # null for a cold user
    ]
)
_JSON_COLUMNS = ("num_events", "first_seen", "last_seen", "segments", "interests", "affinities", "scores")
_FIRST_KEY, *_AFTER = (b',"%b":' % name.encode() for name in (*_JSON_COLUMNS, FACTS[0]))
_KEYS_AFTER = tuple(zip(_JSON_COLUMNS, _AFTER, strict=True))  # each column with the key that ends it


def cold_profile(user_id: str, *, base_rates: Mapping[str, float], as_of_us: int) -> pa.Table:
    """The declared fallback of a user whom the release does not know: scores are the base rates, the rest is empty."""
    row = {
        "user_id": user_id,
        "as_of": as_of_us,
        "is_cold": True,
        "cold_reason": UNKNOWN_USER,
        "num_events": 0,
        "first_seen": None,
        "last_seen": None,
        "segments": {"lifecycle": COLD_LIFECYCLE},
        "interests": [],
        "affinities": [],
        "scores": [
            {"name": name, "value": rate, "base_rate": rate, "drivers": []} for name, rate in base_rates.items()
        ],
        **dict.fromkeys(FACTS),
        "embedding": None,
    }
    return pa.Table.from_pylist([row], schema=PROFILE_SCHEMA)


def to_json_records(profiles: pa.Table, *, computed_at_us: int, stored: Sequence[bytes] | None = None) -> list[bytes]:
    """JSON object of each profile [U], UTF-8, without the embedding; one pass in Rust.

    `stored`: records of the same users, whose facts of the user table are carried over in place of the profiles' own.
    """
    profiles = with_all_facts(profiles).combine_chunks()
    names = ["user_id", "is_cold", "cold_reason", "as_of", "computed_at", *_JSON_COLUMNS]
    names += ["signup_at"] if stored is None else []
    computed_at = pa.repeat(pa.scalar(computed_at_us, pa.int64()), profiles.num_rows).cast(TIMESTAMP_TYPE)
    columns = [computed_at if name == "computed_at" else _array(profiles, name) for name in names]
    # One array and not a frame: to take a table over costs twice as much, more than to render a few users does.
    rows: pl.Series = pl.Series(pa.StructArray.from_arrays(columns, names=names))
    rendered = rows.struct.json_encode()
    if stored is not None:
        bodies = rendered.cast(pl.Binary).to_list()
        return [body[:-1] + stored_facts(kept) for body, kept in zip(bodies, stored, strict=True)]
    attributes, consent = (pl.Series(_array(profiles, name)) for name in ("attributes", "consent"))
    return with_objects(rendered, attributes, consent).cast(pl.Binary).to_list()


def splice(body: bytes, *, release: bytes, computed_at_us: int, now_us: int, also: bytes = b"") -> Pieces:
    """The answer of a read, to be joined: `release`, `age_ms` and `also` (members, each with its comma) in front.

    A profile has kilobytes: it is copied once, when the whole answer is joined.
    """
    age_ms = max(0, (now_us - computed_at_us) // 1000)
    return b'{"release":"%b","age_ms":%d,%b' % (release, age_ms, also), memoryview(body)[1:]


def cut(body: bytes, columns: Container[str]) -> bytes:
    """A record with its envelope and only these of its columns, in its order; nothing but facts is parsed.

    Within a text every quote is escaped, and no nested object before the facts has a key that follows it at the top,
    so the first place of a key after the one before it is where its column starts.
    """
    start = body.index(_FIRST_KEY)
    pieces = [body[:start]]
    for name, following in _KEYS_AFTER:
        end = body.index(following, start)
        if name in columns:
            pieces.append(body[start:end])
        start = end
    if any(name in columns for name in FACTS):
        facts = orjson.loads(b"{%b" % body[start + 1 :])
        pieces += [b',"%b":%b' % (name.encode(), orjson.dumps(facts[name])) for name in FACTS if name in columns]
    return b"%b}" % b"".join(pieces)


def iso_time(time_us: int) -> str:
    """Microseconds since 1970 as ISO 8601 in UTC, as in the JSON records."""
    return datetime.fromtimestamp(time_us / 1_000_000, tz=UTC).isoformat()


def embeddings_of(profiles: pa.Table) -> list[bytes]:
    """Packed little-endian float32 embedding of each profile [U]; empty for a cold user."""
    column = profiles.column("embedding").combine_chunks()
    lengths = column.value_lengths().fill_null(0).to_numpy(zero_copy_only=False)
    content = column.flatten().to_numpy(zero_copy_only=False).astype("<f4").tobytes()
    ends = np.concatenate(([0], np.cumsum(lengths, dtype=np.int64) * 4)).tolist()
    return [content[start:end] for start, end in pairwise(ends)]


def profile_file(profiles: Folder, bucket: int) -> Folder:
    """Profiles of the users of one history bucket, `releases/<id>/profiles/bucket=NNN/part-0.parquet`."""
    return profiles / f"bucket={bucket:03d}" / "part-0.parquet"


def _array(table: pa.Table, name: str) -> pa.Array:
    column = table.column(name)
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
