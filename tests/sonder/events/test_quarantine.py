"""Rows set aside: always valid to write, always readable, whatever the row held."""

from __future__ import annotations

import datetime as dt
import json
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sonder.events.contract import QUARANTINE_SCHEMA, Reason
from sonder.events.quarantine import MAX_ROW_CHARS, quarantine_table, readable, rows_as_json, unparsable

NOON = dt.datetime(2020, 1, 1, 12)


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        (pa.array([1, None]), 1),
        (pa.array([1.5, None]), 1.5),
        (pa.array([np.inf, None]), None),
        (pa.array([True, None]), True),
        (pa.array(['a"b\n', None]), 'a"b\n'),
        (pa.array(["a", None]).dictionary_encode(), "a"),
        (pa.array([b"\xffa\0", None]), "\ufffda\0"),
        (pa.array([b"\x01\xff", None], pa.binary(2)), "01ff"),
        (pa.array([b"0123456789abcdef", None], pa.uuid()), b"0123456789abcdef".hex()),
        (pa.array([Decimal("1.50"), None]), "1.50"),
        (pa.array([dt.date(2020, 1, 1), None]), "2020-01-01"),
        (pa.array([NOON, None], pa.timestamp("s")), "2020-01-01 12:00:00"),
        (pa.array([dt.time(12), None], pa.time32("s")), "12:00:00"),
        (pa.array([[b"\xff", None], None]), ["\ufffd", None]),
        (pa.array([[1, 2], None], pa.list_(pa.int32(), 2)), [1, 2]),
        (pa.array([[1, 2], None], pa.list_view(pa.int32())), "[1, 2]"),
        (pa.array([{"a": b"\xff", "b": {"c": Decimal("2.0")}}, None]), {"a": "\ufffd", "b": {"c": "2.0"}}),
        (pa.array([[("k", b"v")], None], pa.map_(pa.string(), pa.binary())), [{"key": "k", "value": "v"}]),
        (pa.array([{}, None], pa.struct([])), {}),
        (pa.nulls(2), None),
    ],
    ids=lambda value: str(value.type) if isinstance(value, pa.Array) else "",
)
def test_a_row_with_a_column_of_any_type_is_json(column: pa.Array, expected: object) -> None:
    whole = [json.loads(row) for row in rows_as_json(pa.table({"other": [7, 8], "x": column})).to_pylist()]
    assert whole == [{"other": 7, "x": expected}, {"other": 8, "x": None}]
    sliced = rows_as_json(pa.table({"x": pa.concat_arrays([column, column]).slice(1, 2)}))
    assert [json.loads(row)["x"] for row in sliced.to_pylist()] == [None, expected]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.none() | st.binary(max_size=6), max_size=20))
def test_bytes_are_readable_and_the_readable_ones_unchanged(cells: list[bytes | None]) -> None:
    found = readable(pa.array(cells, pa.binary())).to_pylist()
    assert found == [None if cell is None else cell.decode("utf-8", "replace") for cell in cells]


def test_a_line_that_is_no_row_is_kept_as_a_json_string_with_its_number() -> None:
    lines = [b'say "hi"\x01', b"\xff\xfe", b"x" * 9_000]
    table = unparsable("log.csv", [4, 7, 9], ["why"] * 3, lines)
    assert table.schema == QUARANTINE_SCHEMA
    assert table["log_order"].to_pylist() == [4, 7, 9]
    assert [json.loads(row) for row in table["row"].to_pylist()[:2]] == ['say "hi"\x01', "\ufffd\ufffd"]
    assert len(table["row"][2].as_py()) == MAX_ROW_CHARS
    assert unparsable("log.csv", [], [], []).equals(QUARANTINE_SCHEMA.empty_table())


def test_details_and_rows_are_cut_by_characters_never_inside_one() -> None:
    long = pa.array(["é😀" * 3_000])
    (row,) = quarantine_table("log", np.array([1]), pa.array(["anonymous"]), long, long).to_pylist()
    assert (row["detail"], row["row"]) == ("é😀" * 100, "é😀" * 1_000)


def test_only_what_belongs_to_nobody_or_to_a_bot_is_not_bad() -> None:
    assert [reason for reason in Reason if not reason.is_bad] == [Reason.ANONYMOUS, Reason.BOT]
