"""JSON lines -> raw blocks of text columns; one broken line costs itself only.

Polars parses the wanted fields of all lines at once as text (numbers become their shortest spelling, 17850.0 is
"17850"). When that fails, the broken lines are found by halving the block. A field that holds a list or an object is
found by its first character and looked at again, because a text may start with a bracket too.
Row numbers: lines from 0, blank ones counted. The quarantined row is the line itself.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import orjson
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from sonder.events.quarantine import MAX_ROW_CHARS, readable, unparsable
from sonder.events.raw_blocks import RawBlock
from sonder.events.text_lines import NEWLINE, LineBlock, line_blocks
from sonder.events.values import failing_rows

_BLANKS = b" \t\r"


def read_json_blocks(source: str, base_order: int, columns: Sequence[str]) -> Iterator[RawBlock]:
    """Every block of a file; the log order of a row is `base_order` plus its line number."""
    for block in line_blocks(source):
        yield json_block(block, source, base_order, columns)


def json_block(block: LineBlock, source: str, base_order: int, columns: Sequence[str]) -> RawBlock:
    """The wanted fields of some lines."""
    starts, ends = block.bounds()
    lines = _lines_array(block.data, starts, ends)
    order = base_order + block.first_line + np.arange(len(lines))
    first, last = _edges(block.bytes_array, starts, ends)
    is_object = (first == ord("{")) & (last == ord("}"))
    rows = np.flatnonzero(is_object)
    objects = lines if len(rows) == len(lines) else lines.take(pa.array(rows))
    table, failed = _parse(objects, _schema_of(columns), columns)
    broken = np.sort(np.concatenate((np.flatnonzero(~is_object & (first != NEWLINE)), rows[failed])))
    rows = np.delete(rows, failed)
    texts = [lines[row].as_py().rstrip() for row in broken.tolist()]
    aside = unparsable(source, order[broken].tolist(), [_complaint(text) for text in texts], texts)
    return RawBlock(table, order[rows], aside, whole_rows=lambda some: _as_text(lines, rows[some]))


def _as_text(lines: pa.BinaryArray, rows: NDArray[np.int64]) -> pa.LargeStringArray:
    texts = pc.utf8_rtrim_whitespace(readable(lines.take(pa.array(rows))))
    return pc.utf8_slice_codeunits(texts, 0, MAX_ROW_CHARS)


def _lines_array(data: bytes, starts: NDArray[np.int64], ends: NDArray[np.int64]) -> pa.LargeBinaryArray:
    """The lines as an Arrow array over the block itself; each keeps its newline."""
    offsets = pa.py_buffer(np.append(starts, len(data)).astype(np.int64))
    return pa.LargeBinaryArray.from_buffers(pa.large_binary(), len(ends), [None, offsets, pa.py_buffer(data)])


def _edges(
    view: NDArray[np.uint8], starts: NDArray[np.int64], ends: NDArray[np.int64]
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """First and last byte of each line that is not blank space [N]; a newline where there is none."""
    starts, ends = starts.copy(), ends - 1
    for _ in range(64):  # indented lines: few have any
        is_blank = (starts <= ends) & np.isin(view[starts], np.frombuffer(_BLANKS, np.uint8))
        if not is_blank.any():
            break
        starts += is_blank
    for _ in range(64):
        is_blank = (starts <= ends) & np.isin(view[ends], np.frombuffer(_BLANKS, np.uint8))
        if not is_blank.any():
            break
        ends -= is_blank
    newline = np.uint8(NEWLINE)
    return np.where(starts <= ends, view[starts], newline), np.where(starts <= ends, view[ends], newline)


def _schema_of(columns: Sequence[str]) -> dict[str, Any]:
    """What Polars is asked for: text for each field, and a struct of texts for the dotted ones."""
    tree: dict[str, Any] = dict.fromkeys(columns)  # a key may hold a dot itself
    for column in sorted(columns, key=lambda name: name.count(".")):
        node = tree
        *parents, last = column.split(".")
        for parent in parents:
            node = node.setdefault(parent, {})
            if node is None:
                break  # the outer field is wanted as text, and the inner one is taken from that (_field)
        else:
            node.setdefault(last)

    def typed(node: dict[str, Any]) -> dict[str, Any]:
        return {name: pl.Struct(typed(inner)) if inner else pl.String() for name, inner in node.items()}

    return typed(tree)


def _parse(
    lines: pa.LargeBinaryArray, schema: dict[str, Any], columns: Sequence[str]
) -> tuple[pa.Table, NDArray[np.int64]]:
    """The columns of the lines that are JSON objects, and the rows of those that are not."""
    frame = _read(lines, schema)
    failed = np.zeros(0, np.int64)
    if frame is None:
        works = lambda start, stop: _read(lines.slice(start, stop - start), schema) is not None  # noqa: E731
        failed = np.asarray(failing_rows(len(lines), works), np.int64)
        keep = np.ones(len(lines), np.bool_)
        keep[failed] = False
        lines = lines.filter(pa.array(keep))
        frame = _read(lines, schema)
        assert frame is not None, "lines that are parsed one by one are parsed together"
    arrays = {column: _checked(_field(frame, column), lines, column) for column in columns}
    return pa.table(arrays) if arrays else pa.table({"": pa.nulls(len(lines))}), failed


def _read(lines: pa.LargeBinaryArray, schema: dict[str, Any]) -> pl.DataFrame | None:
    if len(lines) == 0:
        return pl.DataFrame(schema=schema)
    offsets = np.frombuffer(lines.buffers()[1], np.int64)
    joined = lines.buffers()[2].slice(offsets[lines.offset], offsets[lines.offset + len(lines)] - offsets[lines.offset])
    try:
        frame = pl.read_ndjson(joined.to_pybytes(), schema=schema, ignore_errors=True)
    except pl.exceptions.PolarsError:
        return None
    return frame if frame.height == len(lines) else None


def _field(frame: pl.DataFrame, column: str) -> pa.LargeStringArray:
    found = pl.col(column)
    first, *rest = column.split(".")
    if rest:
        inner: pl.Expr = pl.col(first)
        kind: Any = frame.schema[first]
        while rest and isinstance(kind, pl.Struct):
            kind = kind.to_schema()[rest[0]]
            inner = inner.struct.field(rest.pop(0))
        if rest:
            inner = inner.str.json_path_match("$" + "".join(f"[{json.dumps(part)}]" for part in rest))
        found = pl.coalesce(found, inner)
    return frame.select(found.alias(column)).to_series().to_arrow().cast(pa.large_string())


def _checked(values: pa.LargeStringArray, lines: pa.LargeBinaryArray, column: str) -> pa.Array:
    """Text, marked where a list or an object stands."""
    suspects = np.flatnonzero(
        pc.match_substring_regex(values, r"^[\[{]").fill_null(False).to_numpy(zero_copy_only=False)
    )
    nested = [row for row in suspects.tolist() if _is_nested(orjson.loads(lines[row].as_py()), column)]
    if not nested:
        return values
    mask = np.zeros(len(values), np.bool_)
    mask[nested] = True
    # A NUL in front is what the mapping takes for "not text", and the detail still shows what stood there.
    marked = pc.binary_join_element_wise(pa.scalar("\0", pa.large_string()), values, pa.scalar("", pa.large_string()))
    return pc.if_else(pa.array(mask), marked, values)


def _is_nested(row: dict[str, Any], column: str) -> bool:
    found: Any = row.get(column)
    if found is None:
        found = row
        for part in column.split("."):
            found = found.get(part) if isinstance(found, dict) else None
    return isinstance(found, list | dict)


def _complaint(line: bytes) -> str:
    try:
        content = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        return f"not JSON: {error}"
    return f"a JSON {type(content).__name__}, not an object" if not isinstance(content, dict) else "not JSON lines"
