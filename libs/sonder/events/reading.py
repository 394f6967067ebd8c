"""Read a log: settle its configuration, cut it into splits, turn each split into events and quarantined rows.

`resolve` looks at the log once; `plan_splits` lists its parts in order; `read_split` reads one part in any process,
alone, in bounded memory. `online_splits` are those of files of events that arrived online, which have the columns of
the contract whatever the log's are called. `log_order` of a row is (file index << 40) + its row in the file.
Limits: a text file is one split, however large; Parquet and Arrow files are cut by row groups and record batches.
Iceberg and Delta tables are read by Ray Data; their blocks go through `map_batch`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from sonder.core.errors import ConfigurationError
from sonder.core.input_config import EventColumns, EventsConfig
from sonder.events.columnar import arrow_reader, parquet_file, read_arrow_blocks, read_parquet_blocks, to_its_end
from sonder.events.csv_rows import read_csv_blocks
from sonder.events.files import Kind, LogFile, Partitions
from sonder.events.json_rows import read_json_blocks
from sonder.events.mapping import Batch, latest_event_us, map_batch, map_block
from sonder.events.public_logs import RETAIL_EDITIONS, derived_columns
from sonder.events.raw_blocks import RawBlock
from sonder.events.resolving import TABLE_FORMATS, recognise, resolve, resolve_table
from sonder.events.sampling import csv_header, log_kind
from sonder.events.sequences import read_sequence_blocks

__all__ = [
    "TABLE_FORMATS",
    "Batch",
    "LogSplit",
    "map_batch",
    "online_splits",
    "plan_splits",
    "read_raw",
    "read_split",
    "recognise",
    "resolve",
    "resolve_table",
]

FILE_SHIFT = 40
ROWS_PER_SPLIT = 1_000_000


@dataclass(frozen=True)
class LogSplit:
    """A part of a log that is read alone: a file, or some row groups or record batches of one."""

    index: int  # position in the log
    source: str
    file_index: int
    kind: Kind
    first_row: int  # of the file
    part: tuple[int, int] | None  # row groups or record batches [start, stop); None: the whole file
    num_rows: int | None  # None where only reading tells
    size_bytes: int
    partitions: Partitions
    latest_us: int  # a later event is in the future: one moment for all splits of a plan
    is_online: bool = False  # of events that arrived online

    @property
    def first_order(self) -> int:
        """Log order of its first row."""
        return (self.file_index << FILE_SHIFT) + self.first_row


def plan_splits(config: EventsConfig) -> list[LogSplit]:
    """The parts of a log, in its order; files without rows have none."""
    if config.format in TABLE_FORMATS:
        raise ConfigurationError(
            f"A log of format {config.format!r} has no files of its own to split",
            expected="Ray Data's reader for it, then map_batch on each block",
        )
    kind, files = log_kind(config)
    latest_us = latest_event_us()
    splits: list[LogSplit] = []
    for file_index, file in enumerate(files):
        for first_row, part, num_rows, size_bytes in _parts(kind, file):
            splits.append(
                LogSplit(
                    index=len(splits),
                    source=file.source,
                    file_index=file_index,
                    kind=kind,
                    first_row=first_row,
                    part=part,
                    num_rows=num_rows,
                    size_bytes=size_bytes,
                    partitions=file.partitions,
                    latest_us=latest_us,
                )
            )
    return splits


def online_splits(files: Sequence[str], config: EventsConfig, *, after: Sequence[LogSplit] = ()) -> list[LogSplit]:
    """The parts of these files, numbered after those of the log."""
    if not files:
        return []
    first_file = max((split.file_index for split in after), default=-1) + 1
    return [
        replace(split, index=len(after) + split.index, file_index=first_file + split.file_index, is_online=True)
        for split in plan_splits(online_form(config, files))
    ]


def online_form(config: EventsConfig, files: Sequence[str] = ()) -> EventsConfig:
    """How files of events that arrived online are read, beside a log that is read by `config`."""
    columns = EventColumns(**{name: name for name in EventColumns.model_fields})
    return EventsConfig(
        path=tuple(files), format="parquet", columns=columns, timestamp="iso", max_id_bytes=config.max_id_bytes
    )


def read_split(split: LogSplit, config: EventsConfig) -> Iterator[Batch]:
    """The batches of one split, in its order; `config` is resolved."""
    config = online_form(config) if split.is_online else config
    for block in read_raw(split, config, _columns_of(config)):
        yield map_block(block, config, split.source, split.latest_us)


def read_raw(split: LogSplit, config: EventsConfig, columns: list[str]) -> Iterator[RawBlock]:
    """The rows of one split as they are, with these columns at least."""
    for block in _blocks(split, config, columns):
        yield block.with_partitions(split.partitions)


def _blocks(split: LogSplit, config: EventsConfig, columns: list[str]) -> Iterator[RawBlock]:
    match split.kind:
        case "parquet":
            return read_parquet_blocks(split.source, split.part, split.first_order, columns)
        case "arrow":
            return read_arrow_blocks(split.source, split.part, split.first_order)
        case "jsonl":
            return read_json_blocks(split.source, split.first_order, columns)
        case "sequences":
            return read_sequence_blocks(split.source, split.first_order)
        case "csv":
            return read_csv_blocks(split.source, split.first_order, csv_header(config, split.source))


def _columns_of(config: EventsConfig) -> list[str]:
    """Every column of the file that the mapping reads."""
    names = [name for name in config.columns.model_dump().values() if name]
    names += [rule.column for rule in config.action_rules]
    for edition in RETAIL_EDITIONS:
        for name, parts in derived_columns(config.format, edition.columns).items():
            names = [*(other for other in names if other != name), *parts]
    return list(dict.fromkeys(names))


def _parts(kind: Kind, file: LogFile) -> Iterator[tuple[int, tuple[int, int] | None, int | None, int]]:
    """First row, groups, rows and bytes of each part of a file."""
    if kind == "parquet":
        metadata = parquet_file(file.source).metadata
        groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
        yield from _grouped([(group.num_rows, group.total_byte_size) for group in groups])
    elif kind == "arrow":
        reader, is_file = arrow_reader(file.source)
        if is_file:
            with to_its_end(file.source, "Arrow"):
                batches = [reader.get_batch(i) for i in range(reader.num_record_batches)]
            yield from _grouped([(batch.num_rows, batch.nbytes) for batch in batches])
        else:
            yield 0, None, None, file.size_bytes
    elif file.size_bytes:
        yield 0, None, None, file.size_bytes


def _grouped(groups: list[tuple[int, int]]) -> Iterator[tuple[int, tuple[int, int], int, int]]:
    """Neighbouring groups together until they hold ROWS_PER_SPLIT."""
    first_row = start = rows = size = 0
    for index, (num_rows, size_bytes) in enumerate(groups):
        rows, size = rows + num_rows, size + size_bytes
        if rows >= ROWS_PER_SPLIT or index == len(groups) - 1:
            if rows:
                yield first_row, (start, index + 1), rows, size
            first_row, start, rows, size = first_row + rows, index + 1, 0, 0
