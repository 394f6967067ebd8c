"""JSON lines: text of every kind of value, objects inside, and one broken line at a time."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sonder.events.json_rows import json_block
from sonder.events.text_lines import LineBlock

Found = tuple[dict[int, tuple[str | None, ...]], list[int]]


def read(lines: list[bytes], *columns: str) -> Found:
    """Cells by row number, and the numbers of the lines that are no objects."""
    block = json_block(LineBlock(b"".join(line + b"\n" for line in lines), 0, is_last=True), "log", 0, columns)
    cells = zip(*(block.table[name].to_pylist() for name in columns), strict=True)
    rows = dict(zip(block.log_order.tolist(), cells, strict=True))
    return rows, block.unparsable["log_order"].to_pylist()


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (b"17850", "17850"),
        (b"17850.0", "17850"),
        (b"9007199254740993", "9007199254740993"),
        (b"18446744073709551615", "18446744073709551615"),
        (b"1.5", "1.5"),
        (b"true", "true"),
        (b"null", None),
        (b'"\\u00e9\\ud83d\\ude00"', "é😀"),
        (b'"[not a list]"', "[not a list]"),
        (b'["a"]', '\0["a"]'),  # marked: the mapping takes a NUL for "not text"
    ],
)
def test_a_value_of_any_kind_is_text(written: bytes, expected: str | None) -> None:
    assert read([b'{"a":%s}' % written], "a") == ({0: (expected,)}, [])


def test_a_dot_is_part_of_a_key_or_reaches_into_an_object_also_beside_the_outer_field() -> None:
    lines = [
        b'{"event":"buy","event.id":"e1"}',
        b'{"event":{"id":2,"at":{"day":"d"}}}',
        b'{"event":null}',
        b'{"event":"{broken"}',
    ]
    inner = {0: ("e1", None), 1: ("2", "d"), 2: (None, None), 3: (None, None)}
    assert read(lines, "event.id", "event.at.day") == (inner, [])
    rows, _ = read(lines, "event", "event.id", "event.at.day")
    assert {number: row[1:] for number, row in rows.items()} == inner
    assert [rows[number][0] for number in (0, 2, 3)] == ["buy", None, "{broken"]
    assert str(rows[1][0]).startswith("\0")


values = (
    st.none()
    | st.booleans()
    | st.integers(-(10**12), 10**12)
    | st.text(max_size=5)
    | st.lists(st.integers(), max_size=2)
)
objects = st.dictionaries(st.sampled_from("abc"), values, max_size=3).map(lambda row: json.dumps(row).encode())
noise = st.sampled_from(
    [b"", b"  ", b"{", b"}", b"{}", b"[]", b"17", b'"a"', b"null", b'{"a":1}}', b'{"a":1,}', b"{\xff}"]
)


def by_hand(line: bytes) -> tuple[str | None, ...] | None:
    try:
        row: Any = json.loads(line)
    except ValueError:
        return None
    if not isinstance(row, dict):
        return None
    written = [row.get(name) for name in "abc"]
    return tuple(v if v is None or isinstance(v, str) else json.dumps(v) for v in written)


@settings(max_examples=300, deadline=None)
@given(st.lists(objects | noise, max_size=12))
def test_lines_are_read_like_one_by_one_whatever_stands_between_them(lines: list[bytes]) -> None:
    rows, broken = read(lines, "a", "b", "c")
    expected = {number: by_hand(line) for number, line in enumerate(lines) if line.strip()}
    assert broken == [number for number, row in expected.items() if row is None]
    plain = {n: tuple(c and c.removeprefix("\0").replace(" ", "") for c in row) for n, row in rows.items()}
    assert plain == {
        n: tuple(c and c.removeprefix("\0").replace(" ", "") for c in row) for n, row in expected.items() if row
    }
