"""A look at a log: its files, their format, and some of its rows with all columns.

Read are the first rows of the first, the middle and the last file. Columns of CSV are bytes, those of JSON lines text,
and nested JSON objects appear as dotted columns.
"""

from __future__ import annotations

import csv
from collections import Counter
from dataclasses import dataclass, replace
from typing import Any

import orjson
import pyarrow as pa

from sonder.core.errors import ConfigurationError, DataError
from sonder.core.input_config import EventsConfig
from sonder.events.columnar import arrow_reader, parquet_file, to_its_end
from sonder.events.csv_rows import DELIMITERS, POSITIONAL, Dialect, csv_block, names_of, split_line
from sonder.events.files import Kind, LogFile, select_kind
from sonder.events.json_rows import json_block
from sonder.events.public_logs import dialect_of, event_files
from sonder.events.quarantine import empty_quarantine
from sonder.events.raw_blocks import RawBlock
from sonder.events.sequences import sequence_block
from sonder.events.text_lines import LineBlock, first_lines

SAMPLE_ROWS = 5_000  # of each file that is looked at
PUBLIC_TEXT_LOGS = ("movielens", "cdnow")


@dataclass(frozen=True)
class Sample:
    """Some rows of a log and what was learnt on the way."""

    kind: Kind
    files: tuple[LogFile, ...]
    delimiter: str | None
    table: pa.Table  # all columns
    is_whole: bool  # nothing of the log was left out

    @property
    def columns(self) -> list[str]:
        return [name for name in self.table.column_names if name]


def log_kind(config: EventsConfig) -> tuple[Kind, list[LogFile]]:
    """How the files of a log are written, and which they are."""
    files = event_files(config)
    if config.format in PUBLIC_TEXT_LOGS:
        return "csv", files
    return select_kind(files, "auto" if config.format == "online_retail" else config.format)


def take_sample(config: EventsConfig) -> Sample:
    """Look at a log. ConfigurationError if no file matches, DataError if one cannot be read."""
    kind, files = log_kind(config)
    looked_at = list({0: files[0], len(files) // 2: files[len(files) // 2], len(files) - 1: files[-1]}.values())
    delimiter = config.delimiter
    if kind == "csv" and delimiter is None and config.format not in PUBLIC_TEXT_LOGS:
        delimiter = guess_delimiter(next((lines for file in files[:3] if (lines := first_lines(file.source, 50))), []))
    parts = []
    for file in looked_at:
        block = _first_block(kind, file.source, config, delimiter)
        parts.append(replace(block.with_partitions(file.partitions)).table)
    filled = [part for part in parts if part.num_rows] or parts[:1]
    table = _together(filled)
    is_whole = len(looked_at) == len(files) and all(part.num_rows < SAMPLE_ROWS for part in parts)
    return Sample(kind, tuple(files), delimiter, table, is_whole)


def guess_delimiter(lines: list[bytes]) -> str:
    """The delimiter that cuts the most lines into the same number of cells, more than one."""
    texts = [line.decode("utf-8", "replace") for line in lines if line.strip()]

    def fit(delimiter: str) -> tuple[float, int]:
        try:
            counts = Counter(len(split_line(text, Dialect(delimiter))) for text in texts)
        except csv.Error:
            return 0.0, 0
        cells, num = counts.most_common(1)[0] if counts else (1, 0)
        return (num / len(texts), cells) if cells > 1 else (0.0, 0)

    return max(DELIMITERS, key=fit)


def csv_header(config: EventsConfig, source: str) -> Dialect:
    """The dialect of one file; a log whose columns are named by position has no header."""
    lines = first_lines(source, 1)
    dialect = dialect_of(config, source, lines[0] if lines else b"")
    mapped = config.columns.model_dump().values()
    is_positional = any(name and POSITIONAL.fullmatch(name) for name in mapped)
    if not is_positional or not lines or dialect.header is not None:
        return dialect
    if set(mapped) & set(names_of(lines[0], dialect)):
        return dialect
    width = len(split_line(dialect.normalised(lines[0]).decode("utf-8", "replace"), dialect))
    return replace(dialect, header=tuple(f"column_{place}" for place in range(1, width + 1)))


def _first_block(kind: Kind, source: str, config: EventsConfig, delimiter: str | None) -> RawBlock:
    if kind == "parquet":
        file = parquet_file(source)
        with to_its_end(source, "Parquet"):
            batch = next(iter(file.iter_batches(SAMPLE_ROWS, use_threads=False)), None)
        return _block(file.schema_arrow.empty_table() if batch is None else pa.table(batch))
    if kind == "arrow":
        reader, is_file = arrow_reader(source)
        batches = (reader.get_batch(i) for i in range(reader.num_record_batches)) if is_file else iter(reader)
        with to_its_end(source, "Arrow"):
            first = next(batches, None)
        return _block(reader.schema.empty_table() if first is None else pa.table(first.slice(0, SAMPLE_ROWS)))
    lines = first_lines(source, SAMPLE_ROWS + 1)
    if kind == "jsonl":
        return _json_sample(source, lines)
    if kind == "sequences":
        return sequence_block(b"".join(line + b"\n" for line in lines), 0)
    dialect = csv_header(config if delimiter is None else _with_delimiter(config, delimiter), source)
    names, rows = (
        (dialect.header, lines) if dialect.header else (names_of(lines[0], dialect) if lines else (), lines[1:])
    )
    if not names or not rows:
        return _block(pa.table({name: pa.array([], pa.binary()) for name in names}))
    return csv_block(b"".join(line + b"\n" for line in rows), dialect, names, source)


def _json_sample(source: str, lines: list[bytes]) -> RawBlock:
    if lines and lines[0].lstrip().startswith(b"["):
        raise ConfigurationError(
            f"{source} is a JSON array",
            expected="JSON lines: one object a line",
            do="Convert it: jq -c '.[]' FILE > NEW_FILE",
        )
    names: dict[str, None] = {}
    for line in lines:
        try:
            _collect_names(orjson.loads(line), "", names)
        except orjson.JSONDecodeError:
            continue
    block = LineBlock(b"".join(line + b"\n" for line in lines), 0, is_last=True)
    return json_block(block, source, 0, list(names))


def _collect_names(content: Any, prefix: str, names: dict[str, None]) -> None:
    if not isinstance(content, dict):
        return
    for key, value in content.items():
        if isinstance(value, dict) and value:
            _collect_names(value, f"{prefix}{key}.", names)
        elif not any(other.startswith(f"{prefix}{key}.") for other in names):
            names.setdefault(f"{prefix}{key}")


def _with_delimiter(config: EventsConfig, delimiter: str) -> EventsConfig:
    return EventsConfig.model_validate({**config.model_dump(), "delimiter": delimiter})


def _block(table: pa.Table) -> RawBlock:
    return RawBlock(table, pa.array(range(table.num_rows), pa.int64()).to_numpy(), empty_quarantine())


def _together(parts: list[pa.Table]) -> pa.Table:
    if not parts:
        raise DataError("The log has no files", expected="at least one")
    try:
        return pa.concat_tables(parts, promote_options="permissive")
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError):
        return parts[0]  # files of different types: each is read by its own, the first one stands for them
