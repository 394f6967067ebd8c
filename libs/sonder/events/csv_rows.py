"""CSV and its relatives -> raw blocks, in which no row can take another one down with it.

A row is one line. Lines are found first, so that a broken one is known by its number and its bytes; Arrow then parses
the sound ones, all cells as bytes. A quoted cell may run over several lines (50 at most) if the lines together are a
row of the right number of cells; a quote that is opened and never closed costs its own line only.
Row numbers: lines after the header, from 0, blank ones counted; a row of several lines has the number of its first.
A log without a header is read by columns named `column_1`, `column_2`, … in the configuration.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
from numpy.typing import NDArray

from sonder.events.quarantine import unparsable
from sonder.events.raw_blocks import RawBlock
from sonder.events.text_lines import NEWLINE, RETURN, line_blocks

DELIMITERS = (",", ";", "\t", "|")
MAX_LINES_PER_ROW = 50
QUOTE = ord('"')
POSITIONAL = re.compile(r"column_[1-9][0-9]*")


@dataclass(frozen=True)
class Dialect:
    """How a text file is cut into cells."""

    delimiter: str = ","
    header: tuple[str, ...] | None = None  # None: the first line is the header
    is_quoted: bool = True
    is_typed: bool = False  # a header of `name:type`
    is_squeezed: bool = False  # runs of spaces are one delimiter

    def normalised(self, data: bytes) -> bytes:
        """The same lines with a delimiter of one byte."""
        if self.is_squeezed:
            return re.sub(rb"(?m)^ +| +$", b"", re.sub(rb"[ \t]+", b" ", data))
        return data.replace(self.delimiter.encode(), b"\x1f") if len(self.delimiter) > 1 else data

    def restored(self, line: bytes) -> bytes:
        """A normalised line as it was written, but for squeezed spaces."""
        return line.replace(b"\x1f", self.delimiter.encode()) if len(self.delimiter) > 1 else line

    @property
    def cell_end(self) -> str:
        """The delimiter of `normalised` lines."""
        return " " if self.is_squeezed else "\x1f" if len(self.delimiter) > 1 else self.delimiter


def names_of(header: bytes, dialect: Dialect) -> tuple[str, ...]:
    """Unique column names of a header line."""
    text = dialect.normalised(header).decode("utf-8", "replace").strip("\n")
    cells = split_line(text, dialect)
    if dialect.is_typed:
        cells = [cell.rpartition(":")[0] or cell for cell in cells]
    names: list[str] = []
    for place, cell in enumerate(cells, start=1):
        name = cell.strip() or f"column_{place}"
        names.append(name if name not in names else f"{name}_{place}")
    return tuple(names)


def split_line(text: str, dialect: Dialect) -> list[str]:
    """Cells of one normalised line."""
    if not dialect.is_quoted:
        return text.split(dialect.cell_end)
    return next(csv.reader([text], delimiter=dialect.cell_end), [])


def read_csv_blocks(source: str, base_order: int, dialect: Dialect) -> Iterator[RawBlock]:
    """Every block of a file; the log order of a row is `base_order` plus its number."""
    names, carried, carried_from = dialect.header, b"", 0
    for block in line_blocks(source):
        data, first_row = block.data, block.first_line
        if names is None:
            end = data.find(b"\n") + 1
            names, data, first_row = names_of(data[:end], dialect), data[end:], 0
        elif dialect.header is None:
            first_row -= 1  # the header is no row
        if carried:
            data, first_row, carried = carried + data, carried_from, b""
        lines = _Lines(dialect.normalised(data), first_row + base_order, dialect, names)
        if not block.is_last and (start := lines.open_row()) is not None:
            kept = int(lines.starts[start])
            carried, carried_from = lines.data[kept:], first_row + start
            lines = _Lines(lines.data[:kept], first_row + base_order, dialect, names)
        if lines.num:
            yield lines.parsed(source)


def csv_block(data: bytes, dialect: Dialect, names: Sequence[str], source: str) -> RawBlock:
    """The rows of some whole lines without their header: a look at a file."""
    return _Lines(dialect.normalised(data), 0, dialect, names).parsed(source)


class _Lines:
    """The lines of one block, sorted by what has to be done with them."""

    def __init__(self, data: bytes, first_order: int, dialect: Dialect, names: Sequence[str]) -> None:
        self.data, self.first_order, self.dialect, self.names = data, first_order, dialect, list(names)
        view = np.frombuffer(data, np.uint8)
        self.ends = np.flatnonzero(view == NEWLINE)
        self.num = len(self.ends)
        self.starts = np.concatenate((np.zeros(1, np.int64), self.ends[:-1] + 1))[: self.num]
        self.is_blank = self.ends == self.starts
        self.has_nul = self._having(view, 0, data)
        self.has_return = self._having(view, RETURN, data)
        quotes = self._counts(view, QUOTE, data) if dialect.is_quoted else np.zeros(self.num, np.int64)
        self.has_quote, self.is_odd = quotes > 0, quotes % 2 == 1

    def _counts(self, view: NDArray[np.uint8], byte: int, data: bytes) -> NDArray[np.int64]:
        if bytes([byte]) not in data:
            return np.zeros(self.num, np.int64)
        return np.bincount(np.searchsorted(self.ends, np.flatnonzero(view == byte)), minlength=self.num)

    def _having(self, view: NDArray[np.uint8], byte: int, data: bytes) -> NDArray[np.bool_]:
        return self._counts(view, byte, data) > 0

    def line(self, row: int) -> bytes:
        return self.data[self.starts[row] : self.ends[row]]

    def open_row(self) -> int | None:
        """The last line with a quote that only the next block can close, if the block ends inside a row."""
        odd = np.flatnonzero(self.is_odd)
        if not len(odd):
            return None
        last = int(odd[-1])
        if self.num - last >= MAX_LINES_PER_ROW or self._cells(self.line(last)) is not None:
            return None
        is_closing = len(odd) > 1 and self._joined(int(odd[-2]), last) is not None
        return None if is_closing or last == 0 else last

    def parsed(self, source: str) -> RawBlock:
        """Arrow first; what it stumbles over is found by counting cells, and in the end read by hand."""
        is_slow = (self.is_odd | self.has_return) & ~self.has_nul
        by_hand, is_taken = self._by_hand(np.flatnonzero(is_slow))
        is_plain = ~(self.is_blank | self.has_nul | is_slow | is_taken)
        table = self._by_arrow(is_plain)
        wrong: dict[int, str] = {}
        for is_suspect in (self._miscounted, lambda: self.has_quote):
            if table is not None:
                break
            suspects = is_plain & is_suspect()
            by_hand |= self._by_hand(np.flatnonzero(suspects & self.has_quote))[0]
            wrong |= self._miscounts(np.flatnonzero(suspects & ~self.has_quote))
            is_plain &= ~suspects
            table = self._by_arrow(is_plain)
        assert table is not None, "lines without quotes and with the right number of cells are one row each"
        wrong |= dict.fromkeys(np.flatnonzero(self.has_nul & ~is_taken).tolist(), "a NUL byte")
        wrong |= {row: self._complaint(row) for row, cells in by_hand.items() if cells is None}
        rows = np.flatnonzero(is_plain)
        if sound := {row: cells for row, cells in by_hand.items() if cells is not None}:
            extra = pa.table([pa.array(c, pa.binary()) for c in zip(*sound.values(), strict=True)], names=self.names)
            rows = np.concatenate((rows, np.fromiter(sound, np.int64, len(sound))))
            order = np.argsort(rows, kind="stable")
            table, rows = pa.concat_tables([table, extra]).take(pa.array(order)), rows[order]
        numbers = sorted(wrong)
        aside = unparsable(
            source,
            [self.first_order + row for row in numbers],
            [wrong[row] for row in numbers],
            [self.dialect.restored(self.line(row)) for row in numbers],
        )
        return RawBlock(table, rows + self.first_order, aside)

    def _num_cells(self) -> NDArray[np.int64]:
        """Cells of each line by its delimiters outside quotes [N]."""
        view = np.frombuffer(self.data, np.uint8)
        is_end = view == ord(self.dialect.cell_end)
        if self.has_quote.any():
            num_quotes = np.cumsum(view == QUOTE, dtype=np.uint8)  # wraps at 256, its parity does not
            before_line = np.where(self.starts > 0, num_quotes[self.starts - 1], 0).astype(np.uint8)
            is_end &= (num_quotes - np.repeat(before_line, self.ends + 1 - self.starts)) % 2 == 0
        return np.add.reduceat(is_end, self.starts, dtype=np.int64) + 1

    def _miscounted(self) -> NDArray[np.bool_]:
        found: NDArray[np.bool_] = self._num_cells() != len(self.names)
        return found

    def _miscounts(self, rows: NDArray[np.int64]) -> dict[int, str]:
        num_cells = self._num_cells() if len(rows) else rows
        return {row: f"{num_cells[row]} cells where the header has {len(self.names)}" for row in rows.tolist()}

    def _complaint(self, row: int) -> str:
        found = _read_cells(self.line(row), self.dialect.cell_end)
        if found is None:
            return "quotes that do not close" if self.has_quote[row] else "a line end inside a row"
        return f"{len(found)} cells where the header has {len(self.names)}"

    def _by_arrow(self, is_plain: NDArray[np.bool_]) -> pa.Table | None:
        """Parse these lines; None if they are not one row of the right number of cells each."""
        schema = pa.schema([(name, pa.binary()) for name in self.names])
        if not is_plain.any():
            return schema.empty_table()
        try:
            table = pa_csv.read_csv(
                pa.BufferReader(self.data if is_plain.all() else self._joined_bytes(is_plain)),
                read_options=pa_csv.ReadOptions(
                    use_threads=False, column_names=self.names, block_size=len(self.data) + 1
                ),
                parse_options=pa_csv.ParseOptions(
                    delimiter=self.dialect.cell_end,
                    quote_char='"' if self.dialect.is_quoted else False,
                    ignore_empty_lines=False,
                ),
                convert_options=pa_csv.ConvertOptions(
                    check_utf8=False, column_types=schema, strings_can_be_null=False, quoted_strings_can_be_null=False
                ),
            )
        except pa.ArrowInvalid:
            return None
        return table if table.num_rows == np.count_nonzero(is_plain) else None

    def _joined_bytes(self, is_plain: NDArray[np.bool_]) -> bytes:
        """The chosen lines only: one slice for each run of them."""
        edges = np.flatnonzero(np.diff(np.concatenate(([False], is_plain, [False])).astype(np.int8)))
        return b"".join(
            self.data[self.starts[first] : self.ends[stop - 1] + 1]
            for first, stop in zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True)
        )

    def _by_hand(self, lines: NDArray[np.int64]) -> tuple[dict[int, list[bytes] | None], NDArray[np.bool_]]:
        """Read the few lines that Arrow must not see: their cells (None: broken), and the lines they took up."""
        cells_of: dict[int, list[bytes] | None] = {}
        is_taken = np.zeros(self.num, np.bool_)
        odd = np.flatnonzero(self.is_odd)
        for row in lines.tolist():
            if is_taken[row]:
                continue
            cells, stop = self._cells(self.line(row)), row + 1
            if cells is None and self.is_odd[row]:
                place = int(np.searchsorted(odd, row)) + 1
                if place < len(odd) and (joined := self._joined(row, int(odd[place]))) is not None:
                    cells, stop = joined, int(odd[place]) + 1
            cells_of[row] = cells
            is_taken[row:stop] = True
        return cells_of, is_taken

    def _joined(self, first: int, last: int) -> list[bytes] | None:
        """Cells of several lines as one row, unless the lines between them are rows themselves."""
        if last - first >= MAX_LINES_PER_ROW:
            return None
        between = [self.line(row) for row in range(first + 1, last)]
        if len(self.names) > 2 and any(self._cells(line) is not None for line in between):
            return None
        return self._cells(self.data[self.starts[first] : self.ends[last]])

    def _cells(self, line: bytes) -> list[bytes] | None:
        found = _read_cells(line, self.dialect.cell_end)
        return found if found is not None and len(found) == len(self.names) else None


def _read_cells(line: bytes, delimiter: str) -> list[bytes] | None:
    """Cells of one row, as lenient about a quote inside a cell as Arrow; None if the row does not end with the line."""
    text = line.decode("latin-1")  # one character a byte, so that the bytes come back
    lines = [part + "\n" for part in text.split("\n")]
    try:
        found = list(csv.reader([*lines, "end"], delimiter=delimiter))
    except csv.Error:
        return None
    is_closed = len(found) == 2 and found[1] == ["end"]
    return [cell.encode("latin-1") for cell in found[0]] if is_closed else None
