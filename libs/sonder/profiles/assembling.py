"""What the stages say of the same users -> one profile each: what the batch job and the online path call.

Shapes: U users, N rows of a stage's table.
Tables are joined by places and not by queries: a micro-batch of the online path has a few users and some hundred rows,
where every query costs more than its work.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from sonder.events.contract import TIMESTAMP_TYPE
from sonder.history.timelines import MICROSECONDS_PER_DAY, Timelines
from sonder.interests.affinity import AFFINITY_SCHEMA
from sonder.interests.ward import INTEREST_SCHEMA
from sonder.profiles.attributes import FACTS
from sonder.profiles.record import COLD_LIFECYCLE, NO_WANTED_EVENTS, PROFILE_SCHEMA
from sonder.scoring.table import SCORE_SCHEMA
from sonder.segments.clusters import Clusters, cluster_table
from sonder.segments.lifecycle import LIFECYCLE_SCHEMA


@dataclass(frozen=True)
class StageOutputs:
    """What the stages say of the same users; a user may be absent from any of them, and a stage may have failed."""

    vectors: pa.Table | None  # user_id, vector list<float32>; the zero vector means: nothing known
    interests: pa.Table | None  # interests.ward.INTEREST_SCHEMA, one row per user and interest
    affinities: pa.Table | None  # interests.affinity.AFFINITY_SCHEMA, one row per user and category
    segments: pa.Table | None  # segments.lifecycle.LIFECYCLE_SCHEMA
    scores: pa.Table | None  # scoring.table.SCORE_SCHEMA
    users: pa.Table | None = None  # events.contract.USER_SCHEMA, of the user table


def assemble_profiles(
    timelines: Timelines,
    outputs: StageOutputs,
    *,
    base_rates: Mapping[str, float],
    as_of_us: int,
    clusters: Clusters | None = None,
) -> pa.Table:
    """One row of PROFILE_SCHEMA per user of `timelines` (cut at as_of by the caller), in their order.

    The behaviour cluster is that of the vector, assigned here, so batch and online agree; None: a release without.
    """
    user_ids = timelines.user_ids.cast(pa.string())
    embeddings = _embeddings(outputs.vectors, user_ids)
    is_cold = embeddings.is_null()
    activity = _activity(timelines, as_of_us)
    columns = {
        "user_id": user_ids,
        "as_of": pa.repeat(pa.scalar(as_of_us, pa.int64()), len(user_ids)).cast(TIMESTAMP_TYPE),
        "is_cold": is_cold,
        "cold_reason": pc.if_else(is_cold, pa.scalar(NO_WANTED_EVENTS), pa.scalar(None, pa.string())),
        **{name: activity[name] for name in ("num_events", "first_seen", "last_seen")},
        "segments": _segments(outputs, activity, user_ids, clusters),
        "interests": _lists("interests", _given(outputs.interests, INTEREST_SCHEMA), user_ids, ["rank"]),
        "affinities": _lists("affinities", _given(outputs.affinities, AFFINITY_SCHEMA), user_ids, ["level", "rank"]),
        "scores": _lists("scores", _with_base_rates(outputs.scores, base_rates), user_ids, ["place", "name"]),
        **_facts(outputs.users, user_ids, as_of_us),
        "embedding": embeddings,
    }
    return pa.Table.from_arrays([columns[name] for name in PROFILE_SCHEMA.names], schema=PROFILE_SCHEMA)


def _given(table: pa.Table | None, schema: pa.Schema) -> pa.Table:
    return schema.empty_table() if table is None else table.combine_chunks()


def _column(table: pa.Table, name: str) -> pa.Array:
    column = table.column(name)
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def _as(column: pa.Array, kind: pa.DataType) -> pa.Array:
    """Cast where there is anything to cast: an idle cast costs more than the columns of a few users."""
    return column if column.type.equals(kind) else column.cast(kind)


def _beside(user_ids: pa.Array, table: pa.Table) -> pa.Array:
    """Row of each user in a table with one row per user [U], null without one."""
    return pc.index_in(user_ids, value_set=_as(_column(table, "user_id"), pa.string()))


def _lists(name: str, table: pa.Table, user_ids: pa.Array, keys: Sequence[str]) -> pa.Array:
    """The rows of each user as one list of the profile's structs [U], by the keys; empty without any."""
    found = pc.index_in(_as(_column(table, "user_id"), pa.string()), value_set=user_ids).fill_null(-1)
    users_N = found.to_numpy(zero_copy_only=False).astype(np.int64)
    order = np.lexsort((*(_sortable(_column(table, key)) for key in reversed(keys)), users_N))
    order = order[users_N[order] >= 0]
    offsets = np.concatenate(([0], np.cumsum(np.bincount(users_N[order], minlength=len(user_ids)))))
    struct = PROFILE_SCHEMA.field(name).type.value_type
    kept = table if _is_in_order(order, table.num_rows) else table.take(pa.array(order))
    columns = [_as(_column(kept, field.name), field.type) for field in struct]
    entries = pa.StructArray.from_arrays(columns, fields=list(struct))
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), entries)


def _is_in_order(order: NDArray[np.int64], num_rows: int) -> bool:
    return len(order) == num_rows and bool(np.array_equal(order, np.arange(num_rows)))


def _sortable(column: pa.Array) -> NDArray[np.int64]:
    """Numbers in the order of the values."""
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        places: NDArray[np.int64] = pc.rank(column, tiebreaker="dense").to_numpy().astype(np.int64)
        return places
    return np.asarray(column.to_numpy(zero_copy_only=False), dtype=np.int64)


def _activity(timelines: Timelines, as_of_us: int) -> dict[str, pa.Array]:
    has_events = timelines.lengths > 0
    first_us, last_us = np.zeros((2, timelines.num_users), dtype=np.int64)
    first_us[has_events] = timelines.times_us[timelines.offsets[:-1][has_events]]
    last_us[has_events] = timelines.times_us[timelines.offsets[1:][has_events] - 1]
    moments = {"first_seen": first_us, "last_seen": last_us}
    days = {"tenure_days": first_us, "recency_days": last_us}
    return {
        "num_events": pa.array(timelines.lengths, pa.int32()),
        **{name: pa.array(us, pa.int64(), mask=~has_events).cast(TIMESTAMP_TYPE) for name, us in moments.items()},
        **{
            name: pa.array(((as_of_us - us) / MICROSECONDS_PER_DAY).astype(np.float32), mask=~has_events)
            for name, us in days.items()
        },
    }


def _embeddings(vectors: pa.Table | None, user_ids: pa.Array) -> pa.Array:
    """Embedding of each user [U], null without one and where it is all zeros."""
    if vectors is None or vectors.num_rows == 0:
        return pa.nulls(len(user_ids), pa.list_(pa.float32()))
    vectors_VD = _matrix(vectors)
    rows = _beside(user_ids, vectors)
    known = pa.array(np.any(vectors_VD != 0, axis=1)).take(rows).fill_null(False)
    kept = rows.filter(known).to_numpy(zero_copy_only=False)
    is_known = known.to_numpy(zero_copy_only=False)
    offsets = np.concatenate(([0], np.cumsum(is_known))) * vectors_VD.shape[1]
    return pa.ListArray.from_arrays(
        pa.array(offsets, pa.int32(), mask=np.append(~is_known, False)),
        pa.array(vectors_VD[kept.astype(np.int64)].reshape(-1), pa.float32()),
    )


def _matrix(vectors: pa.Table) -> NDArray[np.float32]:
    column = _column(vectors, "vector")
    content: NDArray[np.float32] = column.flatten().to_numpy(zero_copy_only=False).astype(np.float32)
    return content.reshape(len(column), -1)


def _segments(
    outputs: StageOutputs, activity: Mapping[str, pa.Array], user_ids: pa.Array, clusters: Clusters | None
) -> pa.Array:
    table = _given(outputs.segments, LIFECYCLE_SCHEMA)
    rows = _beside(user_ids, table)
    columns = {
        "lifecycle": _column(table, "lifecycle").cast(pa.string()).take(rows).fill_null(COLD_LIFECYCLE),
        "since": _column(table, "since").take(rows),
        "active_days": _column(table, "active_days").take(rows),
        "tenure_days": activity["tenure_days"],
        "recency_days": activity["recency_days"],
        **_clusters(outputs.vectors, user_ids, clusters),
    }
    struct = PROFILE_SCHEMA.field("segments").type
    return pa.StructArray.from_arrays([_as(columns[f.name], f.type) for f in struct], fields=list(struct))


def _clusters(vectors: pa.Table | None, user_ids: pa.Array, clusters: Clusters | None) -> dict[str, pa.Array]:
    if vectors is None or clusters is None or vectors.num_rows == 0:
        return {name: pa.nulls(len(user_ids)) for name in ("cluster_id", "cluster")}
    vectors = vectors.combine_chunks()
    assigned = cluster_table(_column(vectors, "user_id"), _matrix(vectors), clusters)
    ids = _column(assigned, "cluster_id").take(_beside(user_ids, assigned))
    names = pa.array(list(clusters.name_of.values()), pa.string())
    place = pc.index_in(ids, value_set=pa.array(list(clusters.name_of), pa.int16()))
    return {"cluster_id": ids, "cluster": names.take(place)}


def _with_base_rates(scores: pa.Table | None, base_rates: Mapping[str, float]) -> pa.Table:
    """Scores with their base rate and their place in the order of the configuration; unknown ones first."""
    table = _given(scores, SCORE_SCHEMA)
    place = pc.index_in(_column(table, "name").cast(pa.string()), value_set=pa.array(list(base_rates), pa.string()))
    rates = pa.array(list(base_rates.values()), pa.float32()).take(place)
    return table.append_column("base_rate", rates).append_column("place", place.fill_null(-1))


def _facts(users: pa.Table | None, user_ids: pa.Array, as_of_us: int) -> dict[str, pa.Array]:
    """What the user table says [U], null without a row; a signup that is not before as_of is null."""
    if users is None:
        return {name: pa.nulls(len(user_ids), PROFILE_SCHEMA.field(name).type) for name in FACTS}
    users = users.combine_chunks()
    rows = _beside(user_ids, users)
    columns = {name: _column(users, name).take(rows) for name in FACTS}
    signup = columns["signup_at"]
    had_signed_up = pc.less(signup.cast(pa.int64()), as_of_us)
    columns["signup_at"] = pc.if_else(had_signed_up, signup, pa.scalar(None, signup.type))
    return {name: column.cast(PROFILE_SCHEMA.field(name).type) for name, column in columns.items()}
