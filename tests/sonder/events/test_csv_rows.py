"""CSV: what is a row, what is not, and what number it has."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sonder.events import text_lines
from sonder.events.csv_rows import Dialect, read_csv_blocks

COMMAS = Dialect()


def rows_of(
    path: Path, content: bytes, dialect: Dialect = COMMAS
) -> tuple[list[tuple[int, tuple[bytes, ...]]], list[int]]:
    """Rows with their numbers, and the numbers of the lines that are none."""
    path.write_bytes(content)
    rows: list[tuple[int, tuple[bytes, ...]]] = []
    broken: list[int] = []
    for block in read_csv_blocks(str(path), 0, dialect):
        cells = zip(*(column.to_pylist() for column in block.table.columns), strict=True)
        rows += zip(block.log_order.tolist(), cells, strict=True)
        broken += block.unparsable["log_order"].to_pylist()
    return rows, broken


def test_rows_are_numbered_by_their_line_after_the_header_blank_ones_counted(tmp_path: Path) -> None:
    rows, broken = rows_of(tmp_path / "a.csv", b"a,b\n1,2\n\n3,4\n5\n6,7")
    assert rows == [(0, (b"1", b"2")), (2, (b"3", b"4")), (4, (b"6", b"7"))]
    assert broken == [3]


def test_windows_line_ends_and_a_byte_order_mark_are_no_part_of_the_cells(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b"\xef\xbb\xbfa,b\r\n1,2\r\n3,4\r\n")
    (block,) = read_csv_blocks(str(path), 0, Dialect())
    assert block.table.to_pydict() == {"a": [b"1", b"3"], "b": [b"2", b"4"]}


def test_a_quoted_cell_may_hold_delimiters_quotes_and_line_ends(tmp_path: Path) -> None:
    rows, broken = rows_of(tmp_path / "a.csv", b'a,b\n"x,y","say ""hi"""\n"two\nlines",z\nlast,row\n')
    assert rows == [(0, (b"x,y", b'say "hi"')), (1, (b"two\nlines", b"z")), (3, (b"last", b"row"))]
    assert broken == []


def test_a_quote_inside_a_bare_cell_is_a_character(tmp_path: Path) -> None:
    rows, broken = rows_of(tmp_path / "a.csv", b'a,b\n5" pipe,2\n1,6"\n')
    assert [cells for _, cells in rows] == [(b'5" pipe', b"2"), (b"1", b'6"')]
    assert broken == []


def test_a_quote_that_never_closes_costs_its_own_line(tmp_path: Path) -> None:
    rows, broken = rows_of(tmp_path / "a.csv", b'a,b,c\n1,2,3\n"open,2,3\n4,5,6\n7,8,9\n"open,2,3\n1,1,1\n')
    assert [number for number, _ in rows] == [0, 2, 3, 5]
    assert broken == [1, 4]


def test_two_lines_that_quotes_pull_together_do_not_hide_each_other(tmp_path: Path) -> None:
    # The quotes of line 0 are even in number, and yet a parser that reads on swallows line 1.
    rows, broken = rows_of(tmp_path / "a.csv", b'a,b,c\nx"y,"z,q\n1,2,3\n"k",2,3\n')
    assert rows == [(1, (b"1", b"2", b"3")), (2, (b"k", b"2", b"3"))]
    assert broken == [0]


def test_a_carriage_return_inside_a_row_breaks_that_row_only(tmp_path: Path) -> None:
    rows, broken = rows_of(tmp_path / "a.csv", b"a,b\n1,\r2\n3,4\n")
    assert rows == [(1, (b"3", b"4"))]
    assert broken == [0]


def test_blocks_cut_anywhere_give_the_same_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = b"a,b\n" + b"".join(b'%d,"line\nof ""%d"", yes"\n%d,plain\n' % (n, n, n) for n in range(40))
    whole = rows_of(tmp_path / "a.csv", content)
    monkeypatch.setattr(text_lines.read_blocks, "__defaults__", (37,))
    assert rows_of(tmp_path / "a.csv", content) == whole
    assert len(whole[0]) == 80


def test_a_delimiter_of_two_characters_and_runs_of_spaces(tmp_path: Path) -> None:
    double = Dialect("::", header=("a", "b"), is_quoted=False)
    assert rows_of(tmp_path / "a.dat", b"1::2\n3\n", double) == ([(0, (b"1", b"2"))], [1])
    spaced = Dialect(" ", header=("a", "b"), is_quoted=False, is_squeezed=True)
    assert rows_of(tmp_path / "a.txt", b"  1   2 \n 3 4\n", spaced)[0] == [(0, (b"1", b"2")), (1, (b"3", b"4"))]


cells = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=8)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(cells, cells, cells), max_size=12))
def test_whatever_the_csv_module_writes_is_read_back(tmp_path: Path, table: list[tuple[str, str, str]]) -> None:
    written = io.StringIO()
    csv.writer(written, lineterminator="\n", quoting=csv.QUOTE_ALL).writerows([("a", "b", "c"), *table])
    content = written.getvalue()
    rows, broken = rows_of(tmp_path / "a.csv", content.encode())
    # A cell that spans lines which are rows themselves is the one thing that cannot be told from a broken quote.
    if not any("\n" in cell or "\r" in cell for row in table for cell in row):
        assert [found for _, found in rows] == [tuple(cell.encode() for cell in row) for row in table]
        assert broken == []
    else:
        assert len(rows) + len(broken) >= 1


lines = st.lists(st.text(st.sampled_from('ab",\n'), max_size=12), max_size=12)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lines)
def test_no_text_stops_the_reader_and_plain_rows_always_survive(tmp_path: Path, noise: list[str]) -> None:
    content = "x,y,z\n" + "".join(f"{text}\n1,2,3\n" for text in noise)
    rows, broken = rows_of(tmp_path / "a.csv", content.encode())
    numbers = [number for number, _ in rows]
    assert numbers == sorted(set(numbers))
    assert not set(numbers) & set(broken)
    assert all(len(found) == 3 for _, found in rows)
