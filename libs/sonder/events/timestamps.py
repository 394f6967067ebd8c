"""Every usual form of a time -> microseconds since 1970, UTC.

Forms (`events.timestamp`): `iso`, `epoch_s`, `epoch_ms`, `epoch_us`, `epoch_ns`, `ordinal` (1990-01-01 plus n seconds,
for logs that know an order and no clock), or a strptime pattern in chrono's spelling. Native timestamps and dates of
Parquet and Arrow need no form, and what has no zone is UTC. Finer than a microsecond is cut off.
Limits: no event before 1990; no time zones by name other than UTC and GMT.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray

from sonder.core.errors import ConfigurationError
from sonder.events.iso_times import parse_iso
from sonder.events.values import nulls_of, number_of, one_array, text_of

FORMS = ("iso", "epoch_s", "epoch_ms", "epoch_us", "epoch_ns", "ordinal")
EARLIEST_US = 631_152_000_000_000  # 1990-01-01
LAST_US = 253_402_300_799_000_000  # 9999-12-31T23:59:59, what every calendar library still holds
ONE_DAY_US = 86_400_000_000

_UNITS_PER_SECOND = {"s": 1, "ms": 1_000, "us": 1_000_000, "ns": 1_000_000_000}


@dataclass(frozen=True)
class Times:
    """Microseconds [N]; `is_time` where a time was read, `is_bad` where something stands that cannot be one."""

    us: NDArray[np.int64]
    is_time: NDArray[np.bool_]
    is_bad: NDArray[np.bool_]


def parse(column: pa.ChunkedArray | pa.Array, form: str) -> Times:
    """Read a column of times of one form; out of range is not decided here."""
    array = one_array(column)
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    if is_native(array.type):
        return _native(array)
    if form == "auto":
        raise ConfigurationError(
            f"The form of the timestamps ({array.type}) was not decided before the log was read",
            expected=f"one of {', '.join(FORMS)} or a strptime pattern in events.timestamp",
        )
    if form == "ordinal":
        seconds = _scaled(array, "s")
        return Times(seconds.us + EARLIEST_US, seconds.is_time, seconds.is_bad)
    if form.startswith("epoch_"):
        return _scaled(array, form.removeprefix("epoch_"))
    texts = text_of(array)
    us, is_time = parse_iso(texts.values) if form == "iso" else _patterned(texts.values, form)
    return Times(us, is_time, texts.is_bad)


def in_range(times: Times, form: str, latest_us: int) -> NDArray[np.bool_]:
    """Rows whose time is neither before 1990 nor after `latest_us` (an ordinal has no future)."""
    return times.is_time & (times.us >= EARLIEST_US) & (times.us <= (LAST_US if form == "ordinal" else latest_us))


def is_native(kind: pa.DataType) -> bool:
    return bool(pa.types.is_timestamp(kind) or pa.types.is_date(kind))


def _native(array: pa.Array) -> Times:
    is_time = ~nulls_of(array)
    if pa.types.is_date(array.type):
        array = array.cast(pa.date32()).cast(pa.timestamp("s"))
    unit = _UNITS_PER_SECOND[array.type.unit]
    plain = array.cast(pa.int64()).fill_null(0).to_numpy(zero_copy_only=False)
    if unit > 1_000_000:
        return Times(plain // (unit // 1_000_000), is_time, np.zeros(len(plain), np.bool_))
    scale = 1_000_000 // unit
    is_time = is_time & (np.abs(plain) <= LAST_US // scale)
    return Times(np.where(is_time, plain, 0) * scale, is_time, np.zeros(len(plain), np.bool_))


def _scaled(array: pa.Array, unit: str) -> Times:
    """Numbers of `unit` since 1970 -> microseconds. Integers stay integers: nanoseconds do not fit a float."""
    numbers = number_of(array)
    is_number = ~nulls_of(numbers.values)
    floats = numbers.values.fill_null(0).to_numpy(zero_copy_only=False)
    if pa.types.is_integer(array.type):
        integers = pl.Series(array)
    elif pa.types.is_floating(array.type) or pa.types.is_decimal(array.type):
        integers = pl.repeat(None, len(array), dtype=pl.Int64, eager=True)
    else:
        integers = pl.Series(text_of(array).values).cast(pl.Int64, strict=False)
    per_second = _UNITS_PER_SECOND[unit]
    ratio = 1_000_000 / per_second
    is_time = is_number & (np.abs(floats) * ratio <= LAST_US)
    us = np.round(np.where(is_time, floats, 0) * ratio).astype(np.int64)
    is_integer = is_time & integers.is_not_null().to_numpy()
    exact = np.where(is_integer, integers.cast(pl.Int64, strict=False).fill_null(0).to_numpy(), 0)
    exact = exact // (per_second // 1_000_000) if per_second > 1_000_000 else exact * (1_000_000 // per_second)
    return Times(np.where(is_integer, exact, us), is_time, np.zeros(len(array), np.bool_))


def _patterned(texts: pa.LargeStringArray, pattern: str) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    series = pl.Series("timestamp", texts)
    has_clock = any(mark in pattern for mark in ("%H", "%I", "%T", "%R", "%s", "%X", "%c", "%+"))
    try:
        if has_clock:
            parsed = series.str.to_datetime(pattern, strict=False, time_unit="us")
        else:
            parsed = series.str.to_date(pattern, strict=False).cast(pl.Datetime("us"))
    except pl.exceptions.PolarsError as error:
        raise ConfigurationError(
            f"events.timestamp {pattern!r} cannot be used: {error}",
            expected=f"one of {', '.join(FORMS)} or a strptime pattern such as '%m/%d/%Y %H:%M'",
        ) from error
    return parsed.to_physical().fill_null(0).to_numpy(), parsed.is_not_null().to_numpy()
