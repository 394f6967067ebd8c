"""Stored profiles of many users as one Arrow IPC stream: the columns of the release's Parquet files, and the envelope.

`release`, `age_ms`, `computed_at`, `audiences` and `degraded` come with the columns of PROFILE_SCHEMA. For callers
that compute on many users: no JSON is parsed on their side, and vectors are one buffer.
"""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc

from services.gateway.memberships import Audiences
from services.travelling import packed
from sonder.events.contract import TIMESTAMP_TYPE
from sonder.profiles.parsing import parse_records
from sonder.profiles.store import StoredProfile

MEDIA_TYPE = "application/vnd.apache.arrow.stream"
_MEMBERSHIP = [("name", pa.string()), ("definition_version", pa.int32()), ("source", pa.string())]
_TIMES = ("entered_at", "as_of")
_AUDIENCES_READ = pa.list_(pa.struct([*_MEMBERSHIP, *((name, pa.string()) for name in _TIMES)]))
_AUDIENCES = pa.list_(pa.struct([*_MEMBERSHIP, *((name, TIMESTAMP_TYPE) for name in _TIMES)]))
_DEGRADED = pa.list_(pa.struct([("stage", pa.string()), ("reason", pa.string()), ("instead", pa.string())]))


def to_stream(
    release: str,
    profiles: Sequence[StoredProfile],
    audiences: Sequence[Audiences] | None,
    *,
    columns: Sequence[str],
    now_us: int,
) -> bytes:
    """The stream of one record batch [U]; `audiences` None where they are not asked for."""
    table = parse_records([one.body for one in profiles], [one.embedding for one in profiles], columns)
    computed_us = pa.array([one.computed_at_us for one in profiles], pa.int64())
    ages_ms = pc.divide(pc.max_element_wise(pc.subtract(now_us, computed_us), 0), 1000)
    table = table.add_column(0, pa.field("age_ms", pa.int64(), nullable=False), ages_ms)
    named = pa.array([release] * len(profiles), pa.string()).dictionary_encode()
    table = table.add_column(0, pa.field("release", named.type, nullable=False), named)
    if audiences is not None:
        memberships = [None if one.found is None else [m._asdict() for m in one.found] for one in audiences]
        read = pa.array(memberships, _AUDIENCES_READ)
        table = table.append_column("audiences", read.cast(_AUDIENCES))  # ISO 8601 -> timestamps
        table = table.append_column("degraded", pa.array([list(one.degraded) for one in audiences], _DEGRADED))
    return packed(table.combine_chunks())
