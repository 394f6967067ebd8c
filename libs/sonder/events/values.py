"""One raw column of any Arrow type -> text or numbers of the contract, and which rows do not fit.

Ids are text. Whole floats lose their `.0` (a column of integers with gaps is a float column to many tools), surrounding
space is cut, empty cells and the usual spellings of "nothing" (`NOTHING`) are null. Lists, objects, bytes that are not
UTF-8 and text with a NUL byte do not fit. Text that a CSV or JSON file holds stays as written: "17850.0" stays
"17850.0" there, because a file without types cannot tell a number from a name.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

NOTHING = ("", "nan", "NaN", "NAN", "null", "NULL", "Null", "none", "None", "NONE", r"\N", "<NA>", "NaT", "undefined")

_SPACE, _NON_ASCII = 32, 128
_LARGEST_EXACT = 2.0**53  # above it a float no longer holds every integer


@dataclass(frozen=True)
class Texts:
    """A column as text [N]: null where nothing stands; `is_bad` where something stands that is not text."""

    values: pa.LargeStringArray
    is_bad: NDArray[np.bool_]

    @property
    def is_missing(self) -> NDArray[np.bool_]:
        """Rows without a value, not counting the bad ones."""
        return nulls_of(self.values) & ~self.is_bad

    @property
    def sizes(self) -> NDArray[np.int64]:
        """Bytes of each value [N]; 0 where null."""
        starts, ends, _ = text_buffers(self.values)
        return np.where(nulls_of(self.values), 0, ends - starts)


@dataclass(frozen=True)
class Numbers:
    """A column as float64 [N]: null where nothing or NaN stands; `is_bad` where no finite number stands."""

    values: pa.DoubleArray
    is_bad: NDArray[np.bool_]


def one_array(column: pa.ChunkedArray | pa.Array) -> pa.Array:
    """A column as one contiguous array."""
    if not isinstance(column, pa.ChunkedArray):
        return column
    if column.num_chunks == 1:
        return column.chunk(0)
    return pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], type=column.type)


def nulls_of(array: pa.Array) -> NDArray[np.bool_]:
    if array.null_count == 0:
        return np.zeros(len(array), dtype=np.bool_)
    return np.asarray(array.is_null().to_numpy(zero_copy_only=False), dtype=np.bool_)


def text_buffers(texts: pa.LargeStringArray) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.uint8]]:
    """Start and end of each value in the data buffer, and that buffer: a view, nothing is copied."""
    _, offsets, data = texts.buffers()
    if len(texts) == 0 or offsets is None:
        return np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.uint8)
    bounds = np.frombuffer(offsets, dtype=np.int64)[texts.offset : texts.offset + len(texts) + 1]
    content = np.frombuffer(data, dtype=np.uint8) if data is not None else np.zeros(0, np.uint8)
    return bounds[:-1], bounds[1:], content


def text_of(column: pa.ChunkedArray | pa.Array) -> Texts:
    """Any column -> text."""
    array = one_array(column)
    kind = array.type
    if isinstance(kind, pa.BaseExtensionType):
        return text_of(array.storage)
    if pa.types.is_dictionary(kind):
        return _dictionary_text(array)
    if pa.types.is_fixed_size_binary(kind):  # digests and UUIDs
        return _clean(pl.from_arrow(array.cast(pa.large_binary())).bin.encode("hex").to_arrow())  # type: ignore[union-attr]
    if pa.types.is_floating(kind):
        return _float_text(array)
    if pa.types.is_decimal(kind):
        return _clean(pc.replace_substring_regex(array.cast(pa.large_string()), r"\.0+$", ""))
    if pa.types.is_nested(kind):
        return Texts(pa.nulls(len(array), pa.large_string()), ~nulls_of(array))
    if is_text(kind):
        return _clean(array)
    return Texts(array.cast(pa.large_string()), np.zeros(len(array), np.bool_))  # integers, booleans, dates, nulls


def number_of(column: pa.ChunkedArray | pa.Array) -> Numbers:
    """Any column -> finite numbers. A boolean is not a number, `1,5` is not one either."""
    array = one_array(column)
    kind = array.type
    if pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind) or pa.types.is_null(kind):
        numbers, is_bad = array.cast(pa.float64(), safe=False), np.zeros(len(array), np.bool_)
    else:
        texts = text_of(array)
        numbers = pl.Series(texts.values).cast(pl.Float64, strict=False).to_arrow()
        is_bad = texts.is_bad | (nulls_of(numbers) & ~texts.is_missing)
        if pa.types.is_boolean(kind):
            is_bad = ~nulls_of(array)
    plain = numbers.fill_null(float("nan")).to_numpy(zero_copy_only=False)
    return Numbers(pa.array(plain, pa.float64(), mask=~np.isfinite(plain)), is_bad | np.isinf(plain))


def failing_rows(num_rows: int, works: Callable[[int, int], bool]) -> list[int]:
    """The rows for which `works(row, row + 1)` is false, found by halving: k bad rows of n cost about k log n calls."""
    failing: list[int] = []
    pending = [(0, num_rows)]
    while pending:
        start, stop = pending.pop()
        if start == stop or works(start, stop):
            continue
        if stop - start == 1:
            failing.append(start)
            continue
        middle = (start + stop) // 2
        pending += [(middle, stop), (start, middle)]
    return failing


def is_text(kind: pa.DataType) -> bool:
    """Strings and bytes of variable length."""
    return bool(
        pa.types.is_string(kind)
        or pa.types.is_large_string(kind)
        or pa.types.is_string_view(kind)
        or pa.types.is_binary(kind)
        or pa.types.is_large_binary(kind)
        or pa.types.is_binary_view(kind)
    )


def _dictionary_text(array: pa.DictionaryArray) -> Texts:
    known = text_of(array.dictionary)
    indices = array.indices.cast(pa.int64())
    is_bad = np.append(known.is_bad, False)[indices.fill_null(len(known.is_bad)).to_numpy(zero_copy_only=False)]
    return Texts(known.values.take(indices), is_bad)


def _float_text(array: pa.Array) -> Texts:
    plain = array.cast(pa.float64()).fill_null(float("nan")).to_numpy(zero_copy_only=False)
    is_whole = np.isfinite(plain) & (plain == np.floor(plain)) & (np.abs(plain) < _LARGEST_EXACT)
    whole = pa.array(np.where(is_whole, plain, 0).astype(np.int64), mask=~is_whole).cast(pa.large_string())
    is_bad = np.isinf(plain)
    if bool((is_whole | np.isnan(plain) | is_bad).all()):
        return Texts(whole, is_bad)
    spelled = pa.array(plain, mask=~np.isfinite(plain)).cast(pa.large_string())
    return Texts(pc.if_else(pa.array(is_whole), whole, spelled), is_bad)


def _clean(array: pa.Array) -> Texts:
    texts, is_bad = _decode(array.cast(pa.large_binary()))
    starts, ends, data = text_buffers(texts)
    filled = ends > starts
    if filled.any():
        edges = np.concatenate((data[starts[filled]], data[ends[filled] - 1]))
        if bool(((edges <= _SPACE) | (edges >= _NON_ASCII)).any()):
            texts = pc.utf8_trim_whitespace(texts)
    if data.size and bool((data == 0).any()):
        has_nul = pc.match_substring(texts, "\0").fill_null(False).to_numpy(zero_copy_only=False)
        is_bad = is_bad | has_nul
        texts = pc.if_else(pa.array(~has_nul), texts, pa.scalar(None, pa.large_string()))
    is_nothing = pc.is_in(texts, value_set=pa.array(NOTHING, pa.large_string()))
    if pc.any(is_nothing).as_py():
        texts = pc.if_else(is_nothing, pa.scalar(None, pa.large_string()), texts)
    return Texts(texts, is_bad)


def _decode(array: pa.LargeBinaryArray) -> tuple[pa.LargeStringArray, NDArray[np.bool_]]:
    """Bytes -> text; rows that are not UTF-8 are null and marked."""
    is_bad = np.zeros(len(array), np.bool_)

    def works(start: int, stop: int) -> bool:
        try:
            array.slice(start, stop - start).cast(pa.large_string())
        except pa.ArrowInvalid:
            return False
        return True

    if not works(0, len(array)):
        is_bad[failing_rows(len(array), works)] = True
        array = pc.if_else(pa.array(~is_bad), array, pa.scalar(None, pa.large_binary()))
    return array.cast(pa.large_string()), is_bad
