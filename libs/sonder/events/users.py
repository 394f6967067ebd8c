"""The user table: when a user signed up, attributes, and what the user consents to; one row per user.

Files are read like those of a log, and ids too, so that they meet. Every attribute becomes text: numbers in the one
spelling that ids have (`events/values.py`), times in ISO 8601. A decision is read from a boolean, 1/0, yes/no, y/n,
true/false or granted/denied. What cannot be read is null, a row without a usable id is left out; both are counted.
Of a repeated id the first row in the table's order stays, but a denial in any of its rows holds.
Shapes: a flat table has user_id, signup_at, `attribute_0`..., `consent_0`... in the configuration's order, log_order.
Limits: an attribute longer than `events.max_id_bytes` is not kept. The table has no time of its own: it says what is
true when it is read, so only signup_at can be held to a moment.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from sonder.core.errors import ConfigurationError
from sonder.core.input_config import EventColumns, EventsConfig, UsersConfig
from sonder.events.contract import ATTRIBUTES_TYPE, CONSENT_TYPE, TIMESTAMP_TYPE, USER_SCHEMA, Col
from sonder.events.files import find_files
from sonder.events.mapping import column_named
from sonder.events.quarantine import empty_quarantine
from sonder.events.raw_blocks import RawBlock
from sonder.events.reading import LogSplit, plan_splits, read_raw
from sonder.events.sampling import take_sample
from sonder.events.timestamp_forms import detect
from sonder.events.timestamps import in_range, parse
from sonder.events.values import Texts, nulls_of, text_of

GRANTED = ("true", "1", "1.0", "yes", "y", "granted")
DENIED = ("false", "0", "0.0", "no", "n", "denied")
MIN_READABLE = 0.5  # of a sample's decisions; below it the column is something else


@dataclass(frozen=True)
class UserTable:
    """A user table with nothing left open: what to read of it, and its files as those of a log."""

    config: UsersConfig  # the form of signup_at is settled
    form: EventsConfig
    max_id_bytes: int

    @property
    def columns(self) -> list[str]:
        """Every column of the files that is read."""
        wanted = self.config.columns
        signup = [wanted.signup_at] if wanted.signup_at else []
        return list(dict.fromkeys([wanted.user_id, *signup, *wanted.attributes, *wanted.consent.values()]))

    def splits(self) -> list[LogSplit]:
        """Its parts, in its order."""
        return plan_splits(self.form)


def resolve_users(config: UsersConfig, events: EventsConfig) -> UserTable:
    """Look at the table once; ConfigurationError where a column is missing or is not what it is said to be."""
    try:
        find_files((config.path,))
    except ConfigurationError as error:
        expected = "a file, a folder of files, a glob or a URI in users.path"
        raise ConfigurationError(error.found, expected=expected, do=error.do) from error
    columns = EventColumns(user_id=config.columns.user_id, timestamp=config.columns.signup_at)
    form = EventsConfig(path=config.path, format=config.format, columns=columns)
    sample = take_sample(form)
    # A rare field of JSON lines may well stand behind the sample.
    _check_columns(config, sample.table, is_whole=sample.is_whole or sample.kind != "jsonl")
    for purpose, column in config.columns.consent.items():
        _check_decisions(purpose, column, sample.table)
    settled = {**config.model_dump(), "format": sample.kind, "timestamp": _signup_form(config, sample.table)}
    form = EventsConfig.model_validate({**form.model_dump(), "format": sample.kind, "delimiter": sample.delimiter})
    return UserTable(UsersConfig.model_validate(settled), form, events.max_id_bytes)


def read_users(split: LogSplit, table: UserTable) -> Iterator[tuple[pa.Table, Counter[str]]]:
    """The flat tables of one split, in its order, each with its counts."""
    for block in read_raw(split, table.form, table.columns):
        yield map_users(block, table, split.latest_us)


def empty_users(table: UserTable) -> pa.Table:
    """The flat table without rows."""
    nothing = RawBlock(pa.table({}), np.zeros(0, np.int64), empty_quarantine())
    return map_users(nothing, table, latest_us=0)[0]


def map_users(block: RawBlock, table: UserTable, latest_us: int) -> tuple[pa.Table, Counter[str]]:
    """One block -> its rows that have an id, flat, and how many rows and values were not readable."""
    wanted, raw = table.config.columns, block.table
    ids = _text(raw, wanted.user_id)
    is_long = ids.sizes > table.max_id_bytes
    signup, bad_signups = _signups(raw, wanted.signup_at, table.config.timestamp, latest_us)
    arrays: dict[str, pa.Array] = {Col.USER_ID: ids.values, Col.SIGNUP_AT: signup}
    bad_attributes = bad_decisions = 0
    for place, name in enumerate(wanted.attributes):
        texts = _text(raw, name)
        is_bad = texts.is_bad | (texts.sizes > table.max_id_bytes)
        arrays[f"attribute_{place}"] = _nulled(texts.values, is_bad)
        bad_attributes += int(is_bad.sum())
    for place, name in enumerate(wanted.consent.values()):
        arrays[f"consent_{place}"], is_bad = _decisions(_text(raw, name))
        bad_decisions += int(is_bad.sum())
    arrays[Col.LOG_ORDER] = pa.array(block.log_order, pa.int64())
    has_id = ~(ids.is_bad | ids.is_missing | is_long)
    counts = Counter(
        rows=raw.num_rows + block.unparsable.num_rows,
        unparsable=block.unparsable.num_rows,
        without_id=int(ids.is_missing.sum()),
        bad_id=int((ids.is_bad | is_long).sum()),
        bad_signup_at=bad_signups,
        bad_attributes=bad_attributes,
        bad_consent=bad_decisions,
    )
    return pa.table(arrays).filter(pa.array(has_id)), counts


def assemble_users(flat: pa.Table, config: UsersConfig) -> pa.Table:
    """All rows of some users -> USER_SCHEMA, one row per user, by user_id."""
    names = [f"attribute_{place}" for place in range(len(config.columns.attributes))]
    purposes = [f"consent_{place}" for place in range(len(config.columns.consent))]
    frame = pl.from_arrow(flat)
    assert isinstance(frame, pl.DataFrame)
    decisions = [
        pl.when((~pl.col(name)).any()).then(False).otherwise(pl.col(name).first()).alias(name) for name in purposes
    ]
    users = (
        frame.sort(Col.USER_ID, Col.LOG_ORDER)
        .group_by(Col.USER_ID, maintain_order=True)
        .agg(pl.col(Col.SIGNUP_AT, *names).first(), *decisions)
        .to_arrow()
    )
    attributes = [users.column(name) for name in names]
    consent = [users.column(name) for name in purposes]
    arrays = [
        users.column(Col.USER_ID).cast(pa.string()),
        users.column(Col.SIGNUP_AT).cast(TIMESTAMP_TYPE),
        _named_pairs(config.columns.attributes, attributes, users.num_rows, ATTRIBUTES_TYPE),
        _named_pairs(tuple(config.columns.consent), consent, users.num_rows, CONSENT_TYPE),
    ]
    return pa.Table.from_arrays(arrays, schema=USER_SCHEMA)


def _named_pairs(names: tuple[str, ...], columns: list[pa.ChunkedArray], num: int, kind: pa.ListType) -> pa.Array:
    """K columns of N values -> per row the (name, value) pairs that are there, in the order of the names."""
    fields = list(kind.value_type)
    typed = [column.cast(fields[1].type) for column in columns]
    chunks = [chunk for column in typed for chunk in column.chunks]
    values = pa.concat_arrays(chunks) if chunks else pa.array([], fields[1].type)
    by_row_NK = np.arange(len(names) * num).reshape(len(names), num).T
    is_there_NK = ~nulls_of(values)[by_row_NK]
    labels = np.broadcast_to(np.arange(len(names)), by_row_NK.shape)[is_there_NK]
    known = pa.array(names, pa.string()).take(pa.array(labels, pa.int64()))
    pairs = pa.StructArray.from_arrays([known, values.take(pa.array(by_row_NK[is_there_NK]))], fields=fields)
    offsets = np.concatenate(([0], np.cumsum(is_there_NK.sum(axis=1)))).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pairs, type=kind)


def _text(table: pa.Table, name: str) -> Texts:
    found = column_named(table, name)
    return text_of(pa.nulls(table.num_rows) if found is None else found)


def _nulled(values: pa.Array, is_bad: NDArray[np.bool_]) -> pa.Array:
    return pc.if_else(pa.array(is_bad), pa.scalar(None, values.type), values) if is_bad.any() else values


def _signups(table: pa.Table, name: str | None, form: str, latest_us: int) -> tuple[pa.Array, int]:
    found = column_named(table, name) if name else None
    if found is None:
        return pa.nulls(table.num_rows, TIMESTAMP_TYPE), 0
    times = parse(found, form)
    is_time = in_range(times, form, latest_us)
    num_bad = int((~is_time & ~text_of(found).is_missing).sum())
    return pa.array(times.us, pa.int64(), mask=~is_time).cast(TIMESTAMP_TYPE), num_bad


def _decisions(texts: Texts) -> tuple[pa.Array, NDArray[np.bool_]]:
    """True where granted, false where denied, null elsewhere; and where something else stands."""
    said = pc.utf8_lower(texts.values)
    is_granted, is_denied = (
        pc.is_in(said, value_set=pa.array(words, said.type)).to_numpy(zero_copy_only=False)
        for words in (GRANTED, DENIED)
    )
    is_known = is_granted | is_denied
    return pa.array(is_granted, pa.bool_(), mask=~is_known), ~is_known & ~texts.is_missing


def _check_columns(config: UsersConfig, sample: pa.Table, *, is_whole: bool) -> None:
    wanted = config.columns
    places = {"user_id": wanted.user_id, "signup_at": wanted.signup_at}
    places |= {f"attributes[{place}]": name for place, name in enumerate(wanted.attributes)}
    places |= {f"consent.{purpose}": name for purpose, name in wanted.consent.items()}
    for place, name in places.items():
        if name and column_named(sample, name) is None and (is_whole or place == "user_id"):
            raise ConfigurationError(
                f"users.columns.{place} is {name!r}, the user table has {', '.join(filter(None, sample.column_names))}",
                expected="a column of the user table",
                do="Correct the name.",
            )


def _check_decisions(purpose: str, column: str, sample: pa.Table) -> None:
    texts = _text(sample, column)
    _, is_bad = _decisions(texts)
    num_said = int((~texts.is_missing).sum())
    if is_bad.sum() > (1 - MIN_READABLE) * num_said:
        examples = pc.unique(texts.values.filter(pa.array(is_bad)).drop_null())[:3].to_pylist()
        raise ConfigurationError(
            f"users.columns.consent.{purpose} is {column!r}, and most of it is no decision"
            f" ({', '.join(map(repr, examples)) or 'lists or objects'})",
            expected="booleans, 1/0, yes/no, true/false or granted/denied",
            do="Name the column of the decision, or rewrite its values.",
        )


def _signup_form(config: UsersConfig, sample: pa.Table) -> str:
    """The form of signup_at, settled by the configuration or by the sample."""
    name = config.columns.signup_at
    found = column_named(sample, name) if name else None
    if config.timestamp not in ("auto", "ordinal"):
        return config.timestamp
    form = "iso" if found is None or bool(text_of(found).is_missing.all()) else detect(found)
    if form is None or "ordinal" in (form, config.timestamp):
        examples = [] if found is None else text_of(found).values.drop_null()[:3].to_pylist()
        raise ConfigurationError(
            f"users.columns.signup_at is {name!r}, and it holds no times ({', '.join(map(repr, examples))})",
            expected="ISO 8601, epoch seconds to nanoseconds, or what a strptime pattern in users.timestamp reads",
            do="Set users.timestamp, such as '%d.%m.%Y'; or name another column.",
        )
    return form
