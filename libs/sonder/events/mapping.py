"""One raw batch of a log + configuration -> valid events and the rows that are set aside.

A row is set aside for exactly one reason, the first of these that applies:
unknown_type (user, item, action, timestamp, event_id, surface, value, request_id, in this order), missing_id (item,
action), bad_timestamp, overlong_id, anonymous. Badness comes before anonymity, so guests cannot hide a broken log.
The action of a row is that of the first matching rule, else its action column, else the constant.
Limits: within a log, bots and repeated events are found in the history, not here.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from sonder.core.input_config import EventsConfig
from sonder.events.contract import EVENT_SCHEMA, TIMESTAMP_TYPE, Col, Reason
from sonder.events.public_logs import with_derived_columns
from sonder.events.quarantine import empty_quarantine, quarantine_table, rows_as_json
from sonder.events.raw_blocks import RawBlock
from sonder.events.timestamps import ONE_DAY_US, Times, in_range, parse
from sonder.events.values import Numbers, Texts, number_of, text_of

Mask = NDArray[np.bool_]
IDS = (Col.USER_ID, Col.ITEM_ID, Col.ACTION, Col.EVENT_ID, Col.SURFACE, Col.REQUEST_ID)


@dataclass(frozen=True)
class Batch:
    """A part of a log, in the log's order: what is an event, and what is not."""

    events: pa.Table  # EVENT_SCHEMA
    quarantined: pa.Table  # QUARANTINE_SCHEMA


def latest_event_us() -> int:
    """An event later than this is in the future: now and one day, for clocks and zones that are off."""
    return time.time_ns() // 1_000 + ONE_DAY_US


def map_batch(
    raw: pa.Table, config: EventsConfig, source: str, first_row: int, *, latest_us: int | None = None
) -> Batch:
    """Map a raw table whose first row has the log order `first_row`; `config` is resolved."""
    log_order = np.arange(first_row, first_row + raw.num_rows, dtype=np.int64)
    block = RawBlock(raw, log_order, empty_quarantine())
    return map_block(block, config, source, latest_event_us() if latest_us is None else latest_us)


def map_block(block: RawBlock, config: EventsConfig, source: str, latest_us: int) -> Batch:
    """Map one block; quarantined rows come in the log's order."""
    table = with_derived_columns(block.table, config.format)
    fields = {name: _text(table, getattr(config.columns, name)) for name in IDS if name != Col.ACTION}
    fields[Col.ACTION] = _actions(table, config)
    times = parse(_column(table, config.columns.timestamp), config.timestamp)
    values = number_of(_column(table, config.columns.value))
    code, checks = _first_reason(fields, times, values, config, latest_us)
    is_event = code < 0
    events = pa.Table.from_arrays(
        [
            fields[Col.USER_ID].values,
            fields[Col.ITEM_ID].values,
            fields[Col.ACTION].values,
            pa.array(times.us, pa.int64()).cast(TIMESTAMP_TYPE),
            fields[Col.EVENT_ID].values,
            fields[Col.SURFACE].values,
            values.values,
            fields[Col.REQUEST_ID].values,
            pa.array(block.log_order, pa.int64()),
        ],
        names=EVENT_SCHEMA.names,
    )
    if not is_event.all():
        events = events.filter(pa.array(is_event))
        aside = _set_aside(block, table, code, checks, config, source)
    else:
        aside = empty_quarantine()
    if block.unparsable.num_rows:
        aside = pa.concat_tables([block.unparsable, aside]).sort_by(Col.LOG_ORDER)
    return Batch(events=events.cast(EVENT_SCHEMA), quarantined=aside)


@dataclass(frozen=True)
class _Check:
    """Rows to which a reason applies because of one field."""

    reason: Reason
    field: str
    applies: Mask


def _first_reason(
    fields: dict[str, Texts], times: Times, values: Numbers, config: EventsConfig, latest_us: int
) -> tuple[NDArray[np.int8], list[_Check]]:
    """Per row the index of the first check that applies, -1 for an event."""
    checks = list(_checks(fields, times, values, config, latest_us))
    code = np.full(len(times.us), -1, np.int8)
    for index in range(len(checks) - 1, -1, -1):  # backwards, so that the first one stands at the end
        code[checks[index].applies] = index
    return code, checks


def _checks(
    fields: dict[str, Texts], times: Times, values: Numbers, config: EventsConfig, latest_us: int
) -> Iterator[_Check]:
    for name in (Col.USER_ID, Col.ITEM_ID, Col.ACTION):
        yield _Check(Reason.UNKNOWN_TYPE, name, fields[name].is_bad)
    yield _Check(Reason.UNKNOWN_TYPE, Col.TIMESTAMP, times.is_bad)
    for name in (Col.EVENT_ID, Col.SURFACE):
        yield _Check(Reason.UNKNOWN_TYPE, name, fields[name].is_bad)
    yield _Check(Reason.UNKNOWN_TYPE, Col.VALUE, values.is_bad)
    yield _Check(Reason.UNKNOWN_TYPE, Col.REQUEST_ID, fields[Col.REQUEST_ID].is_bad)
    for name in (Col.ITEM_ID, Col.ACTION):
        yield _Check(Reason.MISSING_ID, name, fields[name].is_missing)
    yield _Check(Reason.BAD_TIMESTAMP, Col.TIMESTAMP, ~in_range(times, config.timestamp, latest_us))
    for name in IDS:
        yield _Check(Reason.OVERLONG_ID, name, fields[name].sizes > config.max_id_bytes)
    yield _Check(Reason.ANONYMOUS, Col.USER_ID, fields[Col.USER_ID].is_missing)


def _set_aside(
    block: RawBlock, table: pa.Table, code: NDArray[np.int8], checks: list[_Check], config: EventsConfig, source: str
) -> pa.Table:
    rows = np.flatnonzero(code >= 0)
    details = np.empty(len(rows), dtype=object)
    for index in np.unique(code[rows]):
        where = np.flatnonzero(code[rows] == index)
        field = checks[index].field
        column = getattr(config.columns, field)
        found = column_named(table, column) if column else None
        if found is None:
            details[where] = f"{field}: no value"
        else:
            named = pa.table({column: found.take(pa.array(rows[where]))})
            details[where] = rows_as_json(named).to_numpy(zero_copy_only=False)
    whole = block.whole_rows(rows) if block.whole_rows else rows_as_json(block.table.take(pa.array(rows)))
    reasons = pa.array([check.reason.value for check in checks]).take(pa.array(code[rows]))
    return quarantine_table(source, block.log_order[rows], reasons, pa.array(details, pa.large_string()), whole)


def _actions(table: pa.Table, config: EventsConfig) -> Texts:
    actions = _text(table, config.columns.action)
    values, is_bad = actions.values, actions.is_bad
    if config.action is not None:
        constant = pa.scalar(config.action, pa.large_string())
        if config.columns.action is None:
            values = pa.repeat(constant, table.num_rows)
        else:
            values = pc.if_else(pa.array(is_bad), values, pc.fill_null(values, constant))
    for rule in reversed(config.action_rules):  # backwards, so that the first matching rule wins
        found = pc.match_substring_regex(_text(table, rule.column).values, rule.matches).fill_null(False)
        values = pc.if_else(found, pa.scalar(rule.action, pa.large_string()), values)
        is_bad = is_bad & ~found.to_numpy(zero_copy_only=False)
    return Texts(values, is_bad)


def _text(table: pa.Table, name: str | None) -> Texts:
    return text_of(_column(table, name))


def _column(table: pa.Table, name: str | None) -> pa.ChunkedArray | pa.Array:
    found = column_named(table, name) if name else None
    return pa.nulls(table.num_rows) if found is None else found


def column_named(table: pa.Table, name: str) -> pa.ChunkedArray | pa.Array | None:
    """The column of this name; a dotted name that is no column reaches into objects. None if there is none."""
    if name in table.column_names:
        return table.column(name)
    first, _, rest = name.partition(".")
    if not rest or first not in table.column_names:
        return None
    found = table.column(first)
    for part in rest.split("."):
        if not pa.types.is_struct(found.type) or found.type.get_field_index(part) < 0:
            return None
        found = pc.struct_field(found, part)
    return found
