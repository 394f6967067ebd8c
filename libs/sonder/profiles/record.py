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

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise

import numpy as np
import polars as pl
import pyarrow as pa

from sonder.core.storage import Folder
from sonder.events.contract import TIMESTAMP_TYPE
from sonder.history.timelines import MICROSECONDS_PER_DAY, Timelines
from sonder.interests.affinity import AFFINITY_SCHEMA
from sonder.interests.ward import INTEREST_SCHEMA
from sonder.profiles.attributes import FACT_FIELDS, FACTS, user_facts, with_all_facts, with_objects
from sonder.scoring.table import SCORE_SCHEMA
from sonder.segments.clusters import CLUSTER_SCHEMA, Clusters, cluster_table
from sonder.segments.lifecycle import LIFECYCLE_SCHEMA

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
_JSON_COLUMNS = ("num_events", "first_seen", "last_seen", "segments", "interests", "affinities", "scores", "signup_at")


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
    profiles = (
        _activity(timelines, as_of_us)
        .join(_vectors(outputs.vectors), on="user_id", how="left", maintain_order="left")
        .join(_interests(outputs.interests), on="user_id", how="left", maintain_order="left")
        .join(_affinities(outputs.affinities), on="user_id", how="left", maintain_order="left")
        .join(_segments(outputs.segments), on="user_id", how="left", maintain_order="left")
        .join(_scores(outputs.scores, base_rates), on="user_id", how="left", maintain_order="left")
        .join(user_facts(outputs.users, as_of_us=as_of_us), on="user_id", how="left", maintain_order="left")
        .join(_clusters(outputs.vectors, clusters), on="user_id", how="left", maintain_order="left")
    )
    is_cold = pl.col("embedding").is_null()
    profiles = profiles.with_columns(
        is_cold=is_cold,
        cold_reason=pl.when(is_cold).then(pl.lit(NO_WANTED_EVENTS)),
        segments=pl.struct(
            pl.col("lifecycle").fill_null(COLD_LIFECYCLE),
            "since",
            "active_days",
            "tenure_days",
            "recency_days",
            "cluster_id",
            "cluster",
        ),
        interests=pl.col("interests").fill_null([]),
        affinities=pl.col("affinities").fill_null([]),
        scores=pl.col("scores").fill_null([]),
    )
    return profiles.select(PROFILE_SCHEMA.names).to_arrow().cast(PROFILE_SCHEMA)


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


def to_json_records(profiles: pa.Table, *, computed_at_us: int) -> list[bytes]:
    """JSON object of each profile [U], UTF-8, without the embedding; one pass in Rust, nothing per row in Python."""
    frame = _frame(with_all_facts(profiles).drop_columns(["embedding"]))
    rendered = frame.select(
        pl.struct(
            "user_id",
            "is_cold",
            "cold_reason",
            "as_of",
            pl.lit(computed_at_us).cast(pl.Datetime("us", "UTC")).alias("computed_at"),
            *_JSON_COLUMNS,
        ).struct.json_encode()
    ).to_series()
    return with_objects(rendered, frame["attributes"], frame["consent"]).cast(pl.Binary).to_list()


def splice(body: bytes, *, release: str, computed_at_us: int, now_us: int) -> bytes:
    """The answer of a read: a stored body with `release` and `age_ms` in front."""
    age_ms = max(0, (now_us - computed_at_us) // 1000)
    return b'{"release":"%b","age_ms":%d,%b' % (release.encode(), age_ms, body[1:])


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


def _frame(table: pa.Table) -> pl.DataFrame:
    frame = pl.from_arrow(table)
    assert isinstance(frame, pl.DataFrame)
    return frame


def _activity(timelines: Timelines, as_of_us: int) -> pl.DataFrame:
    has_events = timelines.lengths > 0
    first_us, last_us = np.zeros((2, timelines.num_users), dtype=np.int64)
    first_us[has_events] = timelines.times_us[timelines.offsets[:-1][has_events]]
    last_us[has_events] = timelines.times_us[timelines.offsets[1:][has_events] - 1]
    frame = pl.DataFrame(
        {"first_us": first_us, "last_us": last_us, "num_events": timelines.lengths.astype(np.int32)}
    ).with_columns(pl.Series("user_id", timelines.user_ids.to_pylist(), dtype=pl.String))
    seen = pl.col("num_events") > 0
    as_time = pl.Datetime("us", "UTC")
    return frame.select(
        "user_id",
        "num_events",
        pl.lit(as_of_us).cast(as_time).alias("as_of"),
        pl.when(seen).then(pl.col("first_us").cast(as_time)).alias("first_seen"),
        pl.when(seen).then(pl.col("last_us").cast(as_time)).alias("last_seen"),
        pl.when(seen).then((as_of_us - pl.col("first_us")) / MICROSECONDS_PER_DAY).alias("tenure_days"),
        pl.when(seen).then((as_of_us - pl.col("last_us")) / MICROSECONDS_PER_DAY).alias("recency_days"),
    )


def _vectors(vectors: pa.Table | None) -> pl.DataFrame:
    if vectors is None:
        return pl.DataFrame(schema={"user_id": pl.String, "embedding": pl.List(pl.Float32)})
    frame = _frame(vectors).select("user_id", embedding=pl.col("vector").cast(pl.List(pl.Float32)))
    return frame.filter(pl.col("embedding").list.eval(pl.element() != 0).list.any())


def _interests(interests: pa.Table | None) -> pl.DataFrame:
    frame = _frame(INTEREST_SCHEMA.empty_table() if interests is None else interests).sort("user_id", "rank")
    names = [field.name for field in _INTEREST]
    return frame.group_by("user_id", maintain_order=True).agg(pl.struct(names).alias("interests"))


def _affinities(affinities: pa.Table | None) -> pl.DataFrame:
    table = AFFINITY_SCHEMA.empty_table() if affinities is None else affinities
    frame = _frame(table).sort("user_id", "level", "rank")
    names = [field.name for field in _AFFINITY]
    return frame.group_by("user_id", maintain_order=True).agg(pl.struct(names).alias("affinities"))


def _segments(segments: pa.Table | None) -> pl.DataFrame:
    frame = _frame(LIFECYCLE_SCHEMA.empty_table() if segments is None else segments)
    return frame.select("user_id", "lifecycle", "since", "active_days")


def _clusters(vectors: pa.Table | None, clusters: Clusters | None) -> pl.DataFrame:
    assigned = CLUSTER_SCHEMA.empty_table()
    if vectors is not None and clusters is not None and vectors.num_rows:
        column = vectors.column("vector").combine_chunks()
        vectors_UD = column.flatten().to_numpy(zero_copy_only=False).astype(np.float32).reshape(len(column), -1)
        assigned = cluster_table(vectors.column("user_id").combine_chunks(), vectors_UD, clusters)
    names = clusters.name_of if clusters is not None else {}
    name = pl.col("cluster_id").replace_strict(names, default=None, return_dtype=pl.String)
    return _frame(assigned).select("user_id", "cluster_id", cluster=name)


def _scores(scores: pa.Table | None, base_rates: Mapping[str, float]) -> pl.DataFrame:
    rates = pl.DataFrame(
        {"name": list(base_rates), "base_rate": list(base_rates.values()), "place": range(len(base_rates))},
        schema={"name": pl.String, "base_rate": pl.Float32, "place": pl.Int32},
    )
    table = SCORE_SCHEMA.empty_table() if scores is None else scores
    frame = _frame(table).join(rates, on="name", how="left").sort("user_id", "place", "name")
    names = [field.name for field in _SCORE]
    return frame.group_by("user_id", maintain_order=True).agg(pl.struct(names).alias("scores"))
