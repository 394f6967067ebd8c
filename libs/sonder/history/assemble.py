"""Assemble the events of one bucket into timelines: order them, key them, set duplicates and bots aside.

Order is total: user, time, then the log's own order. An event's key is the digest of its given id; without one, of the
row itself and of how many identical rows of the same user came before it, so that a log delivered again yields the same
keys and rows that repeat on purpose stay apart (docs/decisions/0002). Of a given id that repeats within a user, the
first delivered stays. A user with more than `max_events_per_day` events on one UTC day is set aside whole.

Pure and deterministic: the rows may come in any order. Nothing here assumes that `log_order` was counted in one run.
Limits: keys have 64 bits and tell apart events of one user, never users or events across users.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray

from sonder.core.ids import EVENT_KEY, stable_hash
from sonder.events.contract import EVENT_SCHEMA, TIMESTAMP_TYPE, Col, Reason
from sonder.events.quarantine import empty_quarantine, quarantine_table, rows_as_json
from sonder.events.reading import FILE_SHIFT
from sonder.history.snapshot import HISTORY_SCHEMA
from sonder.history.timelines import MICROSECONDS_PER_DAY

ITEM_STATS_SCHEMA = pa.schema(
    [
        pa.field(Col.ITEM_ID, pa.large_string(), nullable=False),
        pa.field(Col.NUM_EVENTS, pa.int64(), nullable=False),
        pa.field(Col.FIRST_SEEN, TIMESTAMP_TYPE, nullable=False),
        pa.field(Col.LAST_SEEN, TIMESTAMP_TYPE, nullable=False),
    ]
)
LABEL_STATS_SCHEMA = pa.schema(
    [
        pa.field("field", pa.large_string(), nullable=False),  # action or surface
        pa.field("name", pa.large_string(), nullable=False),
        pa.field(Col.NUM_EVENTS, pa.int64(), nullable=False),
    ]
)


@dataclass(frozen=True)
class AssembledBucket:
    """What became of the events of one bucket; `history` and `quarantined` hold every event exactly once."""

    history: pa.Table  # HISTORY_SCHEMA, by user_id
    quarantined: pa.Table  # QUARANTINE_SCHEMA, by log_order
    item_stats: pa.Table  # ITEM_STATS_SCHEMA, by item_id: of the events in `history`
    label_stats: pa.Table  # LABEL_STATS_SCHEMA, by field, then name: of the events in `history`


def assemble_bucket(
    events: pa.Table, *, max_events_per_day: int | None, sources: Mapping[int, str] | str = MappingProxyType({})
) -> AssembledBucket:
    """Assemble rows of EVENT_SCHEMA that hold every event of their users.

    `max_events_per_day`: None for a log whose times are ordinals, which have no days. `sources`: name of each file by
    its index in `log_order`, or the one name of a log that is not made of files; for the quarantine.
    """
    frame, user_codes = ordered(pl.DataFrame(pl.from_arrow(events.select(EVENT_SCHEMA.names).cast(EVENT_SCHEMA))))
    keys = event_keys(frame)
    repeats = repeats_given_id(frame, user_codes, keys)
    is_bot = _is_bot(frame, user_codes, repeats, max_events_per_day)
    is_kept = ~(repeats | is_bot)
    repeated, bots = frame.filter(repeats & ~is_bot), frame.filter(is_bot)
    kept, kept_keys = (frame, keys) if is_kept.all() else (frame.filter(is_kept), keys[is_kept])
    quarantined = pa.concat_tables(
        [
            to_quarantine(repeated, Reason.DUPLICATE, sources),
            to_quarantine(bots, Reason.BOT, sources),
        ]
    )
    return AssembledBucket(
        history=to_history(kept, kept_keys),
        quarantined=quarantined.sort_by(Col.LOG_ORDER),
        item_stats=item_stats_of(kept),
        label_stats=label_stats_of(kept),
    )


def event_keys(frame: pl.DataFrame) -> NDArray[np.uint64]:
    """Key of each event [N]; the rows must hold every event of their users."""
    is_given = frame[Col.EVENT_ID].is_not_null().to_numpy()
    keys = np.empty(frame.height, dtype=np.uint64)
    keys[is_given] = stable_hash(frame[Col.EVENT_ID].filter(is_given), EVENT_KEY)
    keys[~is_given] = _derived_keys(frame if not is_given.any() else frame.filter(~is_given))
    return keys


def _derived_keys(frame: pl.DataFrame) -> NDArray[np.uint64]:
    """Digest of each row, and of its occurrence where the user has the same row more than once [N]."""
    fields = [
        pl.col(Col.USER_ID),
        pl.col(Col.ITEM_ID),
        pl.col(Col.ACTION),
        pl.col(Col.TIMESTAMP).to_physical().cast(pl.String),
        pl.col(Col.SURFACE).fill_null("\x00"),
        # The bits of the number: its spelling may change from one version of a library to the next.
        pl.col(Col.VALUE).fill_null(float("nan")).reinterpret(signed=True).cast(pl.String),
        pl.col(Col.REQUEST_ID).fill_null("\x00"),
    ]
    row = frame.select(pl.concat_str(fields, separator="\x1f").alias("row"))["row"]
    keys = stable_hash(row, EVENT_KEY).copy()  # Polars lends its memory
    occurrence = _occurrence(keys)
    again = np.flatnonzero(occurrence)
    if again.size:
        numbered = pl.DataFrame({"row": row.gather(again), "occurrence": occurrence[again]})
        keys[again] = stable_hash(numbered.select(pl.concat_str(pl.all(), separator="\x1f"))["row"], EVENT_KEY)
    return keys


def _occurrence(values: NDArray[np.uint64]) -> NDArray[np.int64]:
    """How many equal values stand before each value [N]."""
    order = np.argsort(values, kind="stable")
    starts = np.flatnonzero(is_new(values[order]))
    run_lengths = np.diff(np.append(starts, len(values)))
    occurrence = np.empty(len(values), dtype=np.int64)
    occurrence[order] = np.arange(len(values)) - np.repeat(starts, run_lengths)
    return occurrence


def ordered(frame: pl.DataFrame) -> tuple[pl.DataFrame, NDArray[np.int64]]:
    """Rows by (user_id, timestamp, log_order), and the rank of each row's user [N].

    Sorting codes instead of strings makes this four times faster than `DataFrame.sort`.
    """
    users = frame[Col.USER_ID].unique().sort()
    codes = frame[Col.USER_ID].cast(pl.Enum(users)).to_physical().to_numpy().astype(np.int64)
    times = frame[Col.TIMESTAMP].to_physical().to_numpy()
    order = np.lexsort((frame[Col.LOG_ORDER].to_numpy(), times, codes))
    return frame[order], codes[order]


def repeats_given_id(frame: pl.DataFrame, user_codes: NDArray[np.int64], keys: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Rows [N] whose given id the same user has on a row that was delivered before."""
    repeats = np.zeros(frame.height, dtype=np.bool_)
    given = np.flatnonzero(frame[Col.EVENT_ID].is_not_null().to_numpy())
    if given.size:
        user, key, delivered = user_codes[given], keys[given], frame[Col.LOG_ORDER].to_numpy()[given]
        order = np.lexsort((delivered, key, user))
        repeats[given[order]] = ~(is_new(user[order]) | is_new(key[order]))
    return repeats


def _is_bot(
    frame: pl.DataFrame, user_codes: NDArray[np.int64], repeats: NDArray[np.bool_], max_events_per_day: int | None
) -> NDArray[np.bool_]:
    """Rows [N] of users with a UTC day of too many events, repeated ids not counted."""
    if max_events_per_day is None or frame.height == 0:
        return np.zeros(frame.height, dtype=np.bool_)
    day = frame[Col.TIMESTAMP].to_physical().to_numpy()[~repeats] // MICROSECONDS_PER_DAY
    user = user_codes[~repeats]
    starts = np.flatnonzero(is_new(user) | is_new(day))
    too_many = np.diff(np.append(starts, len(user))) > max_events_per_day
    is_bot = np.zeros(int(user_codes[-1]) + 1, dtype=np.bool_)
    is_bot[user[starts[too_many]]] = True
    return is_bot[user_codes]


def is_new(values: NDArray[Any]) -> NDArray[np.bool_]:
    """Rows [N] that differ from the row before."""
    return np.append(True, values[1:] != values[:-1])[: len(values)]


def to_history(kept: pl.DataFrame, keys: NDArray[np.uint64]) -> pa.Table:
    is_first = kept[Col.USER_ID].ne_missing(kept[Col.USER_ID].shift(1)).to_numpy()
    starts = np.flatnonzero(is_first)
    offsets = pa.array(np.append(starts, kept.height), pa.int64())
    rows = kept.to_arrow().combine_chunks()
    columns = {
        name: pa.LargeListArray.from_arrays(offsets, _array(rows, name))
        for name in (Col.ITEM_ID, Col.ACTION, Col.TIMESTAMP, Col.SURFACE, Col.VALUE, Col.REQUEST_ID)
    }
    columns[Col.USER_ID] = _array(rows, Col.USER_ID).take(pa.array(starts))
    columns[Col.EVENT_KEY] = pa.LargeListArray.from_arrays(offsets, pa.array(keys))
    columns[Col.NUM_EVENTS] = pa.array(np.diff(np.append(starts, kept.height)).astype(np.int32))
    return pa.Table.from_arrays([columns[name] for name in HISTORY_SCHEMA.names], schema=HISTORY_SCHEMA)


def _array(rows: pa.Table, name: str) -> pa.Array:
    """One column in the type of the contract, which Polars does not keep."""
    column = rows.column(name).cast(EVENT_SCHEMA.field(name).type)
    return column.chunk(0) if column.num_chunks == 1 else pa.concat_arrays(column.chunks)


def to_quarantine(rows: pl.DataFrame, reason: Reason, sources: Mapping[int, str] | str) -> pa.Table:
    """The rows as they were mapped, with the name of their file."""
    if isinstance(sources, str):
        return _quarantine_of(rows, reason, sources)
    files = rows[Col.LOG_ORDER].to_numpy() >> FILE_SHIFT
    parts = [
        _quarantine_of(rows.filter(files == file), reason, sources.get(int(file), f"file {file}"))
        for file in np.unique(files)  # few: a file, not a row
    ]
    return pa.concat_tables([empty_quarantine(), *parts])


def _quarantine_of(rows: pl.DataFrame, reason: Reason, source: str) -> pa.Table:
    return quarantine_table(
        source,
        rows[Col.LOG_ORDER].to_numpy(),
        pa.repeat(pa.scalar(reason.value), rows.height),
        rows[Col.EVENT_ID if reason is Reason.DUPLICATE else Col.USER_ID].to_arrow(),
        rows_as_json(rows.to_arrow()),
    )


def item_stats_of(kept: pl.DataFrame) -> pa.Table:
    stats = kept.group_by(Col.ITEM_ID).agg(
        pl.len().cast(pl.Int64).alias(Col.NUM_EVENTS),
        pl.col(Col.TIMESTAMP).min().alias(Col.FIRST_SEEN),
        pl.col(Col.TIMESTAMP).max().alias(Col.LAST_SEEN),
    )
    return stats.sort(Col.ITEM_ID).to_arrow().cast(ITEM_STATS_SCHEMA)


def label_stats_of(kept: pl.DataFrame) -> pa.Table:
    parts = [
        kept.select(pl.lit(field).alias("field"), pl.col(field).alias("name"))
        .drop_nulls()
        .group_by("field", "name")
        .agg(pl.len().cast(pl.Int64).alias(Col.NUM_EVENTS))
        for field in (Col.ACTION, Col.SURFACE)
    ]
    return pl.concat(parts).sort("field", "name").to_arrow().cast(LABEL_STATS_SCHEMA)
