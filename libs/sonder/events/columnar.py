"""Parquet and Arrow files -> raw blocks: only the columns that are mapped, in batches of bounded size.

A quarantined row is kept whole, so the other columns are read a second time, in step with the first, from the first
batch on that sets a row aside.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.implementations.local import LocalFileSystem
from numpy.typing import NDArray

from sonder.core.errors import DataError
from sonder.core.storage import file_system_of
from sonder.events.files import open_source
from sonder.events.quarantine import empty_quarantine, rows_as_json
from sonder.events.raw_blocks import RawBlock

BATCH_ROWS = 1 << 18


def open_columnar(source: str) -> Any:
    """A seekable file: memory-mapped if it is local."""
    fs, path = file_system_of(source)
    return pa.memory_map(path) if isinstance(fs, LocalFileSystem) else pa.PythonFile(open_source(source), mode="r")


def parquet_file(source: str) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(open_columnar(source))
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"{source} is not a Parquet file: {error}", expected="Parquet") from error


def arrow_reader(source: str) -> tuple[pa.RecordBatchFileReader | pa.RecordBatchStreamReader, bool]:
    """A reader of an Arrow file or stream, and whether it is a file."""
    opened = open_columnar(source)
    is_file = opened.read(6) == b"ARROW1"
    opened.seek(0)
    try:
        return (pa.ipc.open_file(opened), True) if is_file else (pa.ipc.open_stream(opened), False)
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"{source} is not an Arrow file: {error}", expected="Arrow IPC, file or stream") from error


@contextmanager
def to_its_end(source: str, form: str) -> Iterator[None]:
    """Name the file where its content, which is decoded batch by batch, turns out damaged or cut short."""
    try:
        yield
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(
            f"{source} cannot be read to its end: {' '.join(str(error).split())}",
            expected=f"a whole {form} file",
            do="Write or download the file again.",
        ) from error


def read_parquet_blocks(
    source: str, groups: tuple[int, int] | None, first_order: int, columns: Sequence[str]
) -> Iterator[RawBlock]:
    """The batches of some row groups (all if None)."""
    file = parquet_file(source)
    chosen = list(range(*(groups or (0, file.num_row_groups))))
    names = file.schema_arrow.names
    wanted = [name for name in names if _is_wanted(name, columns)]

    def batches(some: list[str]) -> Iterator[pa.RecordBatch]:
        return iter(file.iter_batches(BATCH_ROWS, row_groups=chosen, columns=some, use_threads=False))

    whole = _WholeRows(lambda: batches(names)) if len(wanted) < len(names) else None
    order = first_order
    with to_its_end(source, "Parquet"):
        for number, batch in enumerate(batches(wanted)):
            log_order = np.arange(order, order + batch.num_rows)
            order += batch.num_rows
            rows = None if whole is None else lambda some, number=number: whole.json(number, some)
            yield RawBlock(_table(batch, wanted), log_order, empty_quarantine(), rows)


def read_arrow_blocks(source: str, part: tuple[int, int] | None, first_order: int) -> Iterator[RawBlock]:
    """The record batches of an Arrow file or stream (all if `part` is None)."""
    reader, is_file = arrow_reader(source)
    order = first_order
    with to_its_end(source, "Arrow"):
        numbered = (
            (reader.get_batch(i) for i in range(*(part or (0, reader.num_record_batches)))) if is_file else reader
        )
        for batch in numbered:
            for start in range(0, batch.num_rows, BATCH_ROWS):
                piece = batch.slice(start, BATCH_ROWS)
                yield RawBlock(pa.table(piece), np.arange(order, order + piece.num_rows), empty_quarantine())
                order += piece.num_rows


class _WholeRows:
    """The same batches with all columns, read only as far as somebody asks."""

    def __init__(self, batches: Callable[[], Iterator[pa.RecordBatch]]) -> None:
        self._open, self._batches = batches, iter(())
        self._number, self._batch = -1, None

    def json(self, number: int, rows: NDArray[np.int64]) -> pa.Array:
        if self._number < 0:
            self._batches = self._open()
        while self._number < number:
            self._batch, self._number = next(self._batches), self._number + 1
        return rows_as_json(pa.table(self._batch).take(pa.array(rows)))


def _table(batch: pa.RecordBatch, wanted: Sequence[str]) -> pa.Table:
    return pa.table(batch) if wanted else pa.table({"": pa.nulls(batch.num_rows)})


def _is_wanted(name: str, columns: Sequence[str]) -> bool:
    return any(column == name or column.startswith(name + ".") for column in columns)
