"""Profiles and histories -> the columns that a set of rules reads.

Shapes: U profiles, N events, one column of [U] for each field, named by `Field.column`; only what is asked is computed.
`field_columns` reads rows of PROFILE_SCHEMA with the timelines of the same users in the same order. What the columns
mean is written down readably in profiles.audience_values, and tests hold one to the other.
Weights, scores and shares are stored as float32; both round them to six decimals, so 0.2 is 0.2 on both sides.
Time: windows end at the profile's own as_of; an event at as_of or later does not exist.
Columns that a release does not have yet (cluster, attributes, consent, affinities) are unknown for everybody.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from sonder.events.contract import Col
from sonder.history.timelines import MICROSECONDS_PER_DAY, Timelines
from sonder.history.vocabulary import Vocabulary
from sonder.profiles.audience_windows import windowed_values
from sonder.segments.rules.compiling import POLARS_TYPES
from sonder.segments.rules.schema import WINDOWED, RuleSchema, paths_of
from sonder.segments.rules.syntax import Field, Type

DECIMALS = 6  # of what is stored as float32
NUMBER_PATTERN = r"^[+-]?[0-9]{1,30}(\.[0-9]{1,30})?$"
LISTS = {  # field -> (column, key, value) of a list of structs
    "score": ("scores", "name", "value"),
    "attribute": ("attributes", "name", "value"),
    "consent": ("consent", "name", "granted"),
    "affinity": ("affinities", "category", "share"),
}
DAYS = {"recency_days": "last_seen", "tenure_days": "first_seen"}
_HISTORY_COLUMNS = [Col.USER_ID, Col.ACTION, Col.TIMESTAMP, Col.VALUE]


def schema_of(vocabulary: Vocabulary, scores: Iterable[str]) -> RuleSchema:
    """Names that a release knows: its scores, the log's actions, the catalogue's categories and items without one."""
    items = vocabulary.items.select([Col.ITEM_ID, Col.CATEGORY])
    loose = items.filter(pc.is_null(items.column(Col.CATEGORY))).column(Col.ITEM_ID).to_pylist()
    paths = paths_of(pc.unique(items.column(Col.CATEGORY)).to_pylist()) | frozenset(loose)
    return RuleSchema(scores=frozenset(scores), actions=frozenset(vocabulary.actions), paths=paths)


def reads_history(fields: Iterable[Field]) -> bool:
    """Whether the timelines are needed at all."""
    return any(field.kind in WINDOWED for field in fields)


def profile_columns(fields: Iterable[Field], available: Sequence[str]) -> list[str]:
    """The columns of a profiles file to read for these fields, parts of structs by their dotted names."""
    wanted = ["user_id", "as_of"]
    for field in fields:
        match field.kind:
            case "lifecycle" | "active_days" | "cluster":
                wanted.append(f"segments.{field.kind}")
            case "since_days":
                wanted.append("segments.since")
            case "recency_days" | "tenure_days":
                wanted.append(DAYS[field.kind])
            case "interest" | "num_interests":
                wanted += [f"interests.list.element.{name}" for name in ("medoid_item_id", "category", "weight")]
            case kind if kind in LISTS:
                column, *parts = LISTS[kind]
                wanted += [f"{column}.list.element.{part}" for part in parts]
            case kind if kind not in WINDOWED:
                wanted.append(kind)
    return [name for name in dict.fromkeys(wanted) if name in available]


def activity_of(history: pa.Table, actions: Sequence[str]) -> Timelines:
    """Histories without their items: all that windows read, at a third of the cost. Item indices are all -1."""
    history = history.select(_HISTORY_COLUMNS).combine_chunks()
    columns = {name: history.column(name).combine_chunks() for name in _HISTORY_COLUMNS}
    lengths = pc.list_value_length(columns[Col.ACTION]).to_numpy(zero_copy_only=False)
    flat = {name: columns[name].flatten() for name in (Col.ACTION, Col.TIMESTAMP, Col.VALUE)}
    num_events = len(flat[Col.ACTION])
    indices = pc.index_in(flat[Col.ACTION].cast(pa.string()), value_set=pa.array(actions, pa.string()))
    return Timelines(
        user_ids=columns[Col.USER_ID].cast(pa.string()),
        offsets=np.concatenate(([0], np.cumsum(lengths, dtype=np.int64))),
        items=np.full(num_events, -1, dtype=np.int32),
        actions=indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int16),
        surfaces=np.full(num_events, -1, dtype=np.int16),
        times_us=flat[Col.TIMESTAMP].cast(pa.int64()).to_numpy(),
        values=flat[Col.VALUE].fill_null(float("nan")).to_numpy(),
    )


def field_columns(
    fields: Sequence[Field], profiles: pa.Table, timelines: Timelines | None, actions: Sequence[str]
) -> pl.DataFrame:
    """A frame [U] with a column for each field; `timelines` may be None where no field reads the history."""
    table = _Table(profiles)
    columns = {field.column: table.column(field) for field in fields if field.kind not in WINDOWED}
    windowed = [field for field in fields if field.kind in WINDOWED]
    if windowed:
        assert timelines is not None, "a window is counted over a history"
        values = windowed_values(windowed, timelines, table.times_us("as_of"), actions)
        columns |= {name: pl.Series(values_U) for name, values_U in values.items()}
    return pl.DataFrame([columns[field.column].alias(field.column) for field in fields])


class _Table:
    """Columns of a profiles table; what several fields share is flattened once."""

    def __init__(self, profiles: pa.Table) -> None:
        self._profiles = profiles.combine_chunks()
        self._num_users = profiles.num_rows
        self._flat: dict[str, tuple[NDArray[np.int64], pa.StructArray]] = {}
        self._encoded: dict[tuple[str, str], tuple[NDArray[np.int64], list[str | None]]] = {}

    def column(self, field: Field) -> pl.Series:
        """One field that does not read the history."""
        assert field.type is not None, "fields come from a checked rule"
        dtype = POLARS_TYPES[field.type]
        match field.kind:
            case "lifecycle" | "active_days" | "cluster":
                return _series(self._part("segments", field.kind), dtype)
            case "since_days":
                return self._days_before(self._part("segments", "since"))
            case "recency_days" | "tenure_days":
                return self._days_before(self._plain(DAYS[field.kind]))
            case "first_seen" | "last_seen":
                return _series(self._plain(field.kind).cast(pa.timestamp("us", "UTC")).cast(pa.int64()), dtype)
            case "interest":
                return pl.Series(self._interest(field.key or ""))
            case "num_interests":
                rows, _ = self._list("interests")
                return pl.Series(np.bincount(rows, minlength=self._num_users).astype(np.float64))
            case kind if kind in LISTS:
                return self._keyed(field, dtype)
        return _series(self._plain(field.kind), dtype)

    def times_us(self, name: str) -> NDArray[np.int64]:
        times: NDArray[np.int64] = self._plain(name).cast(pa.int64()).to_numpy(zero_copy_only=False)
        return times

    def _plain(self, name: str) -> pa.Array:
        if name not in self._profiles.column_names:
            return pa.nulls(self._num_users)
        return _whole(self._profiles.column(name))

    def _part(self, column: str, name: str) -> pa.Array:
        struct = self._plain(column)
        has_it = pa.types.is_struct(struct.type) and struct.type.get_field_index(name) >= 0
        return pc.struct_field(struct, name) if has_it else pa.nulls(self._num_users)

    def _days_before(self, times: pa.Array) -> pl.Series:
        """Days of 24 hours from a time to the profile's as_of, exact to the microsecond."""
        moments = times.cast(pa.timestamp("us", "UTC")).cast(pa.int64())
        ages_us = self.times_us("as_of") - moments.fill_null(0).to_numpy(zero_copy_only=False)
        # Divided by numpy: Polars multiplies by the inverse, whose last digit is another one than Python's.
        return _series(pa.array(ages_us / MICROSECONDS_PER_DAY, mask=~moments.is_valid().to_numpy(False)), pl.Float64)

    def _list(self, column: str) -> tuple[NDArray[np.int64], pa.StructArray]:
        """Row of the user of each entry of a list column, and the entries."""
        if column not in self._flat:
            lists = self._plain(column)
            if pa.types.is_null(lists.type):
                self._flat[column] = np.zeros(0, dtype=np.int64), pa.array([], pa.struct([]))
            else:
                lengths = lists.value_lengths().fill_null(0).to_numpy(zero_copy_only=False)
                self._flat[column] = np.repeat(np.arange(self._num_users), lengths), lists.flatten()
        return self._flat[column]

    def _codes(self, column: str, name: str) -> tuple[NDArray[np.int64], list[str | None]]:
        """Texts of a list's entries as indices into the distinct ones."""
        if (column, name) not in self._encoded:
            texts = pc.struct_field(self._list(column)[1], name)
            if column == "interests":
                texts = pc.coalesce(texts, pc.struct_field(self._list(column)[1], "medoid_item_id"))
            encoded = texts.dictionary_encode("encode")
            indices = encoded.indices.to_numpy(zero_copy_only=False).astype(np.int64)
            self._encoded[column, name] = indices, encoded.dictionary.to_pylist()
        return self._encoded[column, name]

    def _interest(self, path: str) -> NDArray[np.float64]:
        rows, entries = self._list("interests")
        if not len(rows):
            return np.zeros(self._num_users)
        codes, names = self._codes("interests", "category")
        below = np.array([is_below(name, path) for name in names], dtype=np.bool_)[codes]
        weights = pc.struct_field(entries, "weight").to_numpy(zero_copy_only=False)[below].astype(np.float64)
        return np.round(np.bincount(rows[below], weights, minlength=self._num_users), DECIMALS)

    def _keyed(self, field: Field, dtype: Any) -> pl.Series:
        """The value of the entry with the field's key, the last one if there are several."""
        column, key, value = LISTS[field.kind]
        rows, entries = self._list(column)
        found = np.full(self._num_users, -1, dtype=np.int64)
        if len(rows):
            codes, names = self._codes(column, key)
            is_asked = codes == (names.index(field.key) if field.key in names else -1)
            found[rows[is_asked]] = np.flatnonzero(is_asked)
            values = pc.struct_field(entries, value).take(pa.array(found, mask=found < 0))
        else:
            values = pa.nulls(self._num_users)
        if field.kind == "attribute" and field.type is Type.NUMBER:
            texts = _series(values, pl.String)
            is_number = texts.str.contains(NUMBER_PATTERN)
            return pl.select(pl.when(is_number).then(texts.cast(pl.Float64, strict=False))).to_series()
        series = _series(values, dtype)
        if field.type is Type.NUMBER:
            series = series.round(DECIMALS, mode="half_to_even")
        if field.kind == "affinity":  # no entry is no activity, but no list is unknown
            has_list = pl.Series(self._plain(column).is_valid().to_numpy(zero_copy_only=False))
            series = pl.select(pl.when(has_list).then(series.fill_null(0.0))).to_series()
        return series


def is_below(name: str | None, path: str) -> bool:
    """Whether a category is the path or stands below it."""
    return name is not None and (name == path or name.startswith(f"{path}/"))


def _whole(column: pa.ChunkedArray) -> pa.Array:
    if column.num_chunks == 0:
        return pa.array([], type=column.type)
    return column.chunk(0) if column.num_chunks == 1 else pa.concat_arrays(column.chunks)


def _series(values: pa.Array, dtype: Any) -> pl.Series:
    series = pl.from_arrow(values)
    assert isinstance(series, pl.Series)
    return series.cast(dtype)
