"""Rows that are set aside: what they looked like, and why.

The row is kept as JSON, cut to 2,000 characters; bytes that are not UTF-8 appear as U+FFFD there.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from sonder.events.contract import QUARANTINE_SCHEMA, Reason
from sonder.events.values import failing_rows, is_text, one_array

MAX_ROW_CHARS = 2_000
MAX_DETAIL_CHARS = 200


def empty_quarantine() -> pa.Table:
    return QUARANTINE_SCHEMA.empty_table()


def quarantine_table(
    source: str, log_order: NDArray[np.int64], reasons: pa.Array, details: pa.Array, rows: pa.Array
) -> pa.Table:
    """Assemble QUARANTINE_SCHEMA; details and rows are cut to their limits."""
    num = len(log_order)
    columns = [
        pa.repeat(pa.scalar(source, pa.large_string()), num),
        pa.array(log_order, pa.int64()),
        reasons.cast(pa.large_string()),
        pc.utf8_slice_codeunits(details.cast(pa.large_string()), 0, MAX_DETAIL_CHARS),
        pc.utf8_slice_codeunits(rows.cast(pa.large_string()), 0, MAX_ROW_CHARS),
    ]
    return pa.Table.from_arrays(columns, schema=QUARANTINE_SCHEMA)


def unparsable(source: str, log_order: Sequence[int], details: Sequence[str], texts: Sequence[bytes]) -> pa.Table:
    """Lines that are no rows of their format: the row is the line itself, as a JSON string."""
    lines = pl.DataFrame({"line": [text[: 4 * MAX_ROW_CHARS].decode("utf-8", "replace") for text in texts]})
    quoted = lines.select(pl.struct("line").struct.json_encode().str.slice(len('{"line":')).str.head(-1))
    return quarantine_table(
        source,
        np.asarray(log_order, np.int64),
        pa.repeat(pa.scalar(Reason.UNPARSABLE.value), len(texts)),
        pa.array(details, pa.large_string()),
        quoted.to_series().to_arrow() if texts else pa.array([], pa.large_string()),
    )


def rows_as_json(table: pa.Table) -> pa.LargeStringArray:
    """Each row of a table as one JSON object [N]."""
    if table.num_columns == 0:
        return pa.repeat(pa.scalar("{}", pa.large_string()), table.num_rows)
    names = [*dict.fromkeys(table.column_names)]
    frame = pl.DataFrame([pl.Series(name, _encodable(one_array(table.column(name)))) for name in names])
    encoded: pa.LargeStringArray = frame.select(pl.struct(pl.all()).struct.json_encode()).to_series().to_arrow()
    return encoded.cast(pa.large_string())


def _encodable(array: pa.Array) -> pa.Array:
    """The same values in types that Polars writes as JSON: bytes as text, times and decimals as they are written."""
    kind = array.type
    if isinstance(kind, pa.BaseExtensionType):
        return _encodable(array.storage)
    if pa.types.is_dictionary(kind):
        return _encodable(array.dictionary_decode())
    if pa.types.is_fixed_size_binary(kind):
        return pl.from_arrow(array.cast(pa.large_binary())).bin.encode("hex").to_arrow()  # type: ignore[union-attr]
    if is_text(kind):
        return readable(array)
    if pa.types.is_struct(kind) and kind.num_fields:
        fields = [_encodable(field) for field in array.flatten()]
        return pa.StructArray.from_arrays(fields, names=[field.name for field in kind], mask=array.is_null())
    if pa.types.is_map(kind):
        entry = pa.struct([("key", kind.key_type), ("value", kind.item_type)])
        return _encodable(array.cast(pa.large_list(entry)))
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        lists = array.cast(pa.large_list(kind.value_type))
        lengths = pc.list_value_length(lists).fill_null(0).to_numpy(zero_copy_only=False)
        offsets = pa.array(np.concatenate(([0], np.cumsum(lengths))), pa.int64())
        return pa.LargeListArray.from_arrays(offsets, _encodable(lists.flatten()), mask=array.is_null())
    if pa.types.is_struct(kind) or pa.types.is_integer(kind) or pa.types.is_floating(kind):
        return array
    if pa.types.is_boolean(kind) or pa.types.is_null(kind):
        return array
    if pa.types.is_decimal(kind) or (pa.types.is_temporal(kind) and not pa.types.is_interval(kind)):
        return array.cast(pa.large_string())
    spelled = [None if value is None else str(value) for value in array.to_pylist()]  # unions, list views: rare
    return pa.array(spelled, pa.large_string())


def readable(array: pa.Array) -> pa.LargeStringArray:
    """Text or bytes -> valid UTF-8; wrong bytes become U+FFFD."""
    content = array.cast(pa.large_binary())

    def works(start: int, stop: int) -> bool:
        try:
            content.slice(start, stop - start).cast(pa.large_string())
        except pa.ArrowInvalid:
            return False
        return True

    if works(0, len(content)):
        return content.cast(pa.large_string())
    wrong = failing_rows(len(content), works)
    mask = np.zeros(len(content), np.bool_)
    mask[wrong] = True
    repaired = [content[row].as_py().decode("utf-8", "replace") for row in wrong]
    sound = pc.if_else(pa.array(~mask), content, pa.scalar(None, pa.large_binary())).cast(pa.large_string())
    return pc.replace_with_mask(sound, pa.array(mask), pa.array(repaired, pa.large_string()))
