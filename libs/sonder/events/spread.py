"""Rows from all over a log, its end included, without reading it: enough to see its span and its actions.

Each of the first, the middle and the last file gives rows from its beginning, its middle and its end; a compressed text
file gives its beginning only.
"""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa

from sonder.core.input_config import EventsConfig
from sonder.events.columnar import arrow_reader, parquet_file, to_its_end
from sonder.events.csv_rows import csv_block, names_of
from sonder.events.files import LogFile, compression_of, open_source
from sonder.events.json_rows import json_block
from sonder.events.sampling import Sample, csv_header
from sonder.events.sequences import sequence_block
from sonder.events.text_lines import LineBlock, first_lines

PIECE_BYTES = 256 << 10
PIECE_ROWS = 2_000


def spread_sample(config: EventsConfig, sample: Sample) -> pa.Table:
    """The sample, and rows from further down the log; `config` is resolved."""
    parts = [sample.table]
    files = sample.files
    for file in {0: files[0], len(files) // 2: files[len(files) // 2], len(files) - 1: files[-1]}.values():
        parts += [part for part in _pieces(config, sample, file) if part.num_rows]
    try:
        return pa.concat_tables(parts, promote_options="permissive")
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError):
        return sample.table


def _pieces(config: EventsConfig, sample: Sample, file: LogFile) -> Iterator[pa.Table]:
    if sample.kind == "parquet":
        parquet = parquet_file(file.source)
        for group in sorted({parquet.num_row_groups // 2, parquet.num_row_groups - 1} - {-1}):
            rows = parquet.metadata.row_group(group).num_rows
            with to_its_end(file.source, "Parquet"):
                table = parquet.read_row_group(group, use_threads=False)
            yield _located(table.slice(max(0, rows - PIECE_ROWS)), file)
    elif sample.kind == "arrow":
        reader, is_file = arrow_reader(file.source)
        if is_file and reader.num_record_batches:
            with to_its_end(file.source, "Arrow"):
                table = pa.table(reader.get_batch(reader.num_record_batches - 1))
            yield _located(table.slice(max(0, table.num_rows - PIECE_ROWS)), file)
    elif compression_of(file.source) is None:
        for data in _text_pieces(file):
            yield _located(_parsed(config, sample, file, data), file)


def _text_pieces(file: LogFile) -> Iterator[bytes]:
    """Whole lines from the middle and the end of a file that is larger than what was looked at already."""
    if file.size_bytes <= PIECE_BYTES:
        return
    with open_source(file.source) as opened:
        for offset in (file.size_bytes // 2, file.size_bytes - PIECE_BYTES):
            opened.seek(max(0, offset))
            piece = opened.read(PIECE_BYTES)
            start, end = piece.find(b"\n") + 1, piece.rfind(b"\n") + 1
            if start < end:
                yield piece[start:end].replace(b"\r\n", b"\n")


def _parsed(config: EventsConfig, sample: Sample, file: LogFile, data: bytes) -> pa.Table:
    if sample.kind == "jsonl":
        return json_block(LineBlock(data, 0, is_last=True), file.source, 0, sample.columns).table
    if sample.kind == "sequences":
        return sequence_block(data, 0).table
    dialect = csv_header(config, file.source)
    names = dialect.header or names_of(first_lines(file.source, 1)[0], dialect)
    return csv_block(data, dialect, names, file.source).table


def _located(table: pa.Table, file: LogFile) -> pa.Table:
    for name, value in file.partitions:
        if name not in table.column_names:
            table = table.append_column(name, pa.repeat(pa.scalar(value, pa.large_string()), table.num_rows))
    return table
