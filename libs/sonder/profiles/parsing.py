"""Stored JSON records -> a table of the profiles' schema: the columns that the Parquet files of a release have.

pyarrow parses what is wanted of the records with the schema that wrote them; only the small objects of the user
table (attributes, consent) go through Python.
"""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.json as pj

from sonder.events.contract import ATTRIBUTES_TYPE, CONSENT_TYPE, TIMESTAMP_TYPE
from sonder.profiles.attributes import stored_facts
from sonder.profiles.record import PROFILE_SCHEMA, cut

_OBJECTS = {"attributes": (ATTRIBUTES_TYPE, "value"), "consent": (CONSENT_TYPE, "granted")}
_COMPUTED_AT = pa.field("computed_at", TIMESTAMP_TYPE, nullable=False)


def parse_records(bodies: Sequence[bytes], embeddings: Sequence[bytes], columns: Sequence[str]) -> pa.Table:
    """These columns of the profiles [U], in this order; `computed_at` may be one of them.

    `embeddings`: packed little-endian float32 of each user, empty for a cold one.
    """
    schema = PROFILE_SCHEMA.append(_COMPUTED_AT)
    parsed = _parse(bodies, [name for name in columns if name not in (*_OBJECTS, "embedding")], schema)
    facts = [orjson.loads(b"{" + stored_facts(body)[1:]) for body in bodies] if set(columns) & set(_OBJECTS) else []
    found = []
    for name in columns:
        if name == "embedding":
            found.append(pack_vectors(embeddings))
        elif name in _OBJECTS:
            kind, value = _OBJECTS[name]
            objects = [one.get(name) for one in facts]
            rows = [None if o is None else [{"name": n, value: v} for n, v in o.items()] for o in objects]
            found.append(pa.array(rows, kind))
        else:
            found.append(parsed.column(name))
    return pa.table(found, schema=pa.schema([schema.field(name) for name in columns]))


def pack_vectors(packed: Sequence[bytes]) -> pa.ListArray:
    """Lists of float32 [U], null where a user has none."""
    ends = np.concatenate(([0], np.cumsum([len(one) // 4 for one in packed], dtype=np.int64))).astype(np.int32)
    values = pa.array(np.frombuffer(b"".join(packed), dtype="<f4"))
    has_none = pa.array([not one for one in packed], pa.bool_())
    return pa.ListArray.from_arrays(pa.array(ends), values, mask=has_none)


def _parse(bodies: Sequence[bytes], columns: Sequence[str], schema: pa.Schema) -> pa.Table:
    content = b"\n".join(cut(body, columns) for body in bodies)
    wanted = pa.schema([schema.field(name) for name in columns])
    if not bodies:
        return wanted.empty_table()
    return pj.read_json(
        io.BytesIO(content),
        read_options=pj.ReadOptions(use_threads=False, block_size=len(content) + 1),
        parse_options=pj.ParseOptions(explicit_schema=wanted, unexpected_field_behavior="ignore"),
    )
