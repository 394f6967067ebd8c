"""Merge a delivery of new events into one bucket of a history that exists: the same bytes as from all events at once.

A user of whom nothing is new keeps its row as it is; the others' rows are taken apart, joined with what is new by event
key, and made again. What was in the history counts as delivered before: it comes first among events of one time, and of
an id that repeats it stays. A user who passes `max_events_per_day` only with the new events leaves the history whole,
and who was set aside as a bot before stays so.
Source: docs/decisions/0002 for the keys, docs/decisions/0007 for what a merge promises.
Limits: equal to one run over both deliveries where the log has event ids, or no row of one delivery is equal to a row
of the other in every field: without an id such a row is the same event, delivered again (a single run would keep both).
Of an event that the history held and a bot takes out, the given id is not known any more.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import orjson
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from sonder.core.errors import DataError
from sonder.events.contract import EVENT_SCHEMA, QUARANTINE_SCHEMA, Col, Reason
from sonder.events.erasure import Erased, is_erased, without_erased
from sonder.history.assemble import (
    event_keys,
    is_new,
    item_stats_of,
    label_stats_of,
    ordered,
    repeats_given_id,
    to_history,
    to_quarantine,
)
from sonder.history.snapshot import HISTORY_SCHEMA
from sonder.history.timelines import MICROSECONDS_PER_DAY

TOUCHED_SCHEMA = pa.schema([pa.field(Col.USER_ID, pa.large_string(), nullable=False)])
_USER_OF_ROW = r'^\{"user_id":("(?:[^"\\]|\\.)*")'  # a quarantined row is cut, and its user stands first
_LISTS = (Col.ITEM_ID, Col.ACTION, Col.TIMESTAMP, Col.SURFACE, Col.VALUE, Col.REQUEST_ID)


@dataclass(frozen=True)
class MergedBucket:
    """What became of a bucket and of the new events in it."""

    history: pa.Table  # HISTORY_SCHEMA, by user_id
    quarantined: pa.Table  # QUARANTINE_SCHEMA: what was set aside in this bucket before and now
    touched: pa.Table  # TOUCHED_SCHEMA: users whose history is not what it was; some may be gone
    item_stats: pa.Table  # ITEM_STATS_SCHEMA and
    label_stats: pa.Table  # LABEL_STATS_SCHEMA of what came into the history
    num_added: int  # events that came into the history
    num_removed: int  # events that left it: of bots, and of the erased


def merge_bucket(
    history: pa.Table,
    quarantined: pa.Table,
    events: pa.Table,
    *,
    max_events_per_day: int | None,
    sources: Mapping[int, str] | str = MappingProxyType({}),
    erased: Erased = MappingProxyType({}),
    is_ordinal: bool = False,
) -> MergedBucket:
    """Merge rows of EVENT_SCHEMA, in any order, into a bucket and what had been set aside of it.

    `erased`: tombstones that the history does not know yet; the new events come without those of the erased.
    `max_events_per_day` and `sources` as in `assemble_bucket`.
    """
    new = _Delivery.of(events)
    is_gone = is_erased(history.column(Col.USER_ID), erased)
    is_touched = is_gone | _is_in(history.column(Col.USER_ID), new.frame[Col.USER_ID])
    old = flat_events(history.filter(pa.array(is_touched)))
    kept_old = without_erased(old, erased, is_ordinal=is_ordinal)
    num_erased = old.num_rows - kept_old.num_rows
    quarantined = _without_users(quarantined, erased)
    known = _Known.of(kept_old, quarantined)

    is_repeat = new.repeats | known.has(new.frame, new.keys)
    is_bot_new, is_bot_old, bots = _bots(new.frame, is_repeat, known, max_events_per_day)
    repeated, of_bots = new.frame.filter(is_repeat & ~is_bot_new), new.frame.filter(is_bot_new)
    is_kept = ~(is_repeat | is_bot_new)
    added = new.frame.filter(is_kept)
    taken_out = known.frame.filter(is_bot_old)
    rebuilt, changed = _rebuilt(known, ~is_bot_old, added, new.keys[is_kept])
    set_aside = [
        _relabelled(quarantined, bots),
        to_quarantine(repeated, Reason.DUPLICATE, sources),
        to_quarantine(taken_out.select(EVENT_SCHEMA.names), Reason.BOT, "the history before"),
        to_quarantine(of_bots, Reason.BOT, sources),
    ]
    gone = history.column(Col.USER_ID).filter(pa.array(is_gone)).cast(pa.large_string())
    touched = pl.concat([changed, taken_out[Col.USER_ID], pl.Series(gone, dtype=pl.String)]).unique().sort()
    return MergedBucket(
        history=_by_user([history.filter(pa.array(~is_touched)), rebuilt]),
        quarantined=pa.concat_tables([table.cast(QUARANTINE_SCHEMA) for table in set_aside]),
        touched=pa.table([touched.to_arrow().cast(pa.large_string())], schema=TOUCHED_SCHEMA),
        item_stats=item_stats_of(added),
        label_stats=label_stats_of(added),
        num_added=added.height,
        num_removed=num_erased + taken_out.height,
    )


def users_of_rows(quarantined: pa.Table) -> pl.Series:
    """The user of each row of a bucket that was set aside [N]."""
    rows = pl.Series(quarantined.column("row"), dtype=pl.String)
    spelled = rows.str.extract(_USER_OF_ROW)
    known = spelled.drop_nulls().unique().to_list()
    return spelled.replace_strict(known, [orjson.loads(text) for text in known], default=None, return_dtype=pl.String)


@dataclass(frozen=True)
class _Delivery:
    """The new events by user, time and their own order."""

    frame: pl.DataFrame
    keys: NDArray[np.uint64]  # [N]
    repeats: NDArray[np.bool_]  # [N] of a given id, within the delivery

    @classmethod
    def of(cls, events: pa.Table) -> _Delivery:
        rows = pl.DataFrame(pl.from_arrow(events.select(EVENT_SCHEMA.names).cast(EVENT_SCHEMA)))
        frame, user_codes = ordered(rows)
        keys = event_keys(frame)
        return cls(frame, keys, repeats_given_id(frame, user_codes, keys))


@dataclass(frozen=True)
class _Known:
    """What the history has of the users that something is new of, and who of the bucket had been a bot."""

    frame: pl.DataFrame  # EVENT_SCHEMA and the key; log_order is the place in the history
    bots: pl.Series

    @classmethod
    def of(cls, flat: pa.Table, quarantined: pa.Table) -> _Known:
        is_bot = pc.equal(quarantined.column("reason"), Reason.BOT.value)
        return cls(pl.DataFrame(pl.from_arrow(flat)), users_of_rows(quarantined.filter(is_bot)).unique())

    @property
    def keys(self) -> NDArray[np.uint64]:
        return self.frame[Col.EVENT_KEY].to_numpy()

    def has(self, new: pl.DataFrame, keys: NDArray[np.uint64]) -> NDArray[np.bool_]:
        """Which of the new events the same user has already [N]."""
        pairs = pl.DataFrame({Col.USER_ID: new[Col.USER_ID], Col.EVENT_KEY: keys})
        held = self.frame.select(Col.USER_ID, Col.EVENT_KEY).unique().with_columns(is_held=pl.lit(True))
        found = pairs.join(held, on=[Col.USER_ID, Col.EVENT_KEY], how="left", maintain_order="left")
        return found["is_held"].fill_null(False).to_numpy()


def _bots(
    new: pl.DataFrame, is_repeat: NDArray[np.bool_], known: _Known, max_events_per_day: int | None
) -> tuple[NDArray[np.bool_], NDArray[np.bool_], pl.Series]:
    """Rows of bots among the new events [N] and among the known ones, and who they are."""
    bots = known.bots
    if max_events_per_day is not None and new.height:
        events = pl.concat(
            [
                new.filter(~is_repeat).select(Col.USER_ID, Col.TIMESTAMP),
                known.frame.select(Col.USER_ID, Col.TIMESTAMP),
            ]
        )
        day = pl.col(Col.TIMESTAMP).to_physical() // MICROSECONDS_PER_DAY
        busy = events.group_by(Col.USER_ID, day.alias("day")).len().filter(pl.col("len") > max_events_per_day)
        bots = pl.concat([bots, busy[Col.USER_ID]]).unique()
    return new[Col.USER_ID].is_in(bots.implode()).to_numpy(), _column_is_in(known.frame, bots), bots


def _column_is_in(frame: pl.DataFrame, users: pl.Series) -> NDArray[np.bool_]:
    return frame[Col.USER_ID].is_in(users.implode()).to_numpy()


def _rebuilt(
    known: _Known, is_kept: NDArray[np.bool_], added: pl.DataFrame, added_keys: NDArray[np.uint64]
) -> tuple[pa.Table, pl.Series]:
    """Rows of the history for the users that were taken apart, and who of them has something new."""
    both = pl.concat([known.frame.filter(is_kept).select(EVENT_SCHEMA.names), added.select(EVENT_SCHEMA.names)])
    before = both.with_columns(pl.Series(Col.LOG_ORDER, np.arange(both.height)))
    keys = np.concatenate([known.keys[is_kept], added_keys])
    frame, _ = ordered(before)  # a stable order: what was known first, then the delivery in its own order
    return to_history(frame, keys[frame[Col.LOG_ORDER].to_numpy()]), added[Col.USER_ID].unique()


def flat_events(history: pa.Table) -> pa.Table:
    """One row per event: EVENT_SCHEMA, and its key."""
    rows = history.combine_chunks()
    lengths = rows.column(Col.NUM_EVENTS).to_numpy()
    users = rows.column(Col.USER_ID).take(pa.array(np.repeat(np.arange(rows.num_rows), lengths)))
    columns = {name: pc.list_flatten(rows.column(name)) for name in (*_LISTS, Col.EVENT_KEY)}
    columns |= {
        Col.USER_ID: users,
        Col.EVENT_ID: pa.nulls(len(users), pa.large_string()),
        Col.LOG_ORDER: pa.array(np.arange(len(users)), pa.int64()),
    }
    schema = EVENT_SCHEMA.append(pa.field(Col.EVENT_KEY, pa.uint64()))
    return pa.table([columns[name] for name in schema.names], names=schema.names).cast(schema)


def _by_user(parts: list[pa.Table]) -> pa.Table:
    joined = pa.concat_tables([part.cast(HISTORY_SCHEMA) for part in parts]).combine_chunks()
    order = pl.Series(joined.column(Col.USER_ID)).arg_sort()
    if is_sorted(order.to_numpy()):
        return joined
    return joined.take(order.cast(pl.Int64).to_arrow())


def is_sorted(order: NDArray[np.uint32]) -> bool:
    """Whether an order is that of the rows as they stand."""
    return bool((is_new(order) & (np.diff(order.astype(np.int64), prepend=-1) == 1)).all())


def _is_in(user_ids: pa.ChunkedArray, users: pl.Series) -> NDArray[np.bool_]:
    wanted = users.unique().to_arrow().cast(pa.large_string())
    found: NDArray[np.bool_] = pc.is_in(user_ids.cast(pa.large_string()), value_set=wanted).to_numpy()
    return found


def _without_users(quarantined: pa.Table, erased: Erased) -> pa.Table:
    """What was set aside, without the rows of the erased."""
    if not erased or not quarantined.num_rows:
        return quarantined
    is_gone = is_erased(users_of_rows(quarantined).fill_null("").to_arrow(), erased)
    if (is_gone & pc.equal(quarantined.column("reason"), Reason.BOT.value).to_numpy()).any():
        raise DataError(
            "A user who was set aside as a bot has been erased since",
            expected="users whose remaining events can be told from the history",
            do="Build once without --since: only the log knows what that user did after the request.",
        )
    return quarantined.filter(pa.array(~is_gone))


def _relabelled(quarantined: pa.Table, bots: pl.Series) -> pa.Table:
    """Repeated rows of who turns out to be a bot are a bot's rows."""
    rows = pl.DataFrame(pl.from_arrow(quarantined.cast(QUARANTINE_SCHEMA)))
    of_bots = users_of_rows(quarantined).is_in(bots.implode()) if rows.height and len(bots) else None
    if of_bots is None or not (of_bots & (rows["reason"] != Reason.BOT.value)).any():
        return quarantined
    reason = pl.when(pl.Series("is_bot", of_bots)).then(pl.lit(Reason.BOT.value)).otherwise(pl.col("reason"))
    table: pa.Table = rows.with_columns(reason.alias("reason")).to_arrow().cast(QUARANTINE_SCHEMA)
    return table
