"""The catalogue: item_id, category, title, vector, one row per item.

It comes from `items:` of the configuration, or from what a public log brings along: the titles and genres of MovieLens
(category = the first genre, because a category is a path in a tree and a film has one place in it), the descriptions of
Online Retail (title = the most frequent description of a stock code; ties go to the first in the alphabet).
Ids are read as in the log, so that they meet. Rows without an id are left out and of repeated ids the first row stays;
both are counted in the stage's line. `a > b` in a category is `a/b`.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterator

import polars as pl
import pyarrow as pa

from sonder.core.errors import ConfigurationError
from sonder.core.input_config import EventsConfig, ItemsConfig
from sonder.core.storage import file_system_of
from sonder.core.telemetry import stage
from sonder.events.columnar import read_arrow_blocks, read_parquet_blocks
from sonder.events.contract import Col
from sonder.events.csv_rows import Dialect, read_csv_blocks
from sonder.events.files import find_files, select_kind
from sonder.events.json_rows import read_json_blocks
from sonder.events.mapping import column_named
from sonder.events.public_logs import Retail, event_files, retail_edition
from sonder.events.reading import TABLE_FORMATS, plan_splits, read_raw
from sonder.events.sampling import guess_delimiter, take_sample
from sonder.events.text_lines import first_lines
from sonder.events.values import one_array, text_of

CATALOGUE_SCHEMA = pa.schema(
    [
        pa.field(Col.ITEM_ID, pa.string(), nullable=False),
        pa.field(Col.CATEGORY, pa.string()),
        pa.field(Col.TITLE, pa.string()),
        pa.field(Col.VECTOR, pa.list_(pa.float32())),
    ]
)
_NO_GENRE = "(no genres listed)"


def read_items(config: ItemsConfig | None, events: EventsConfig) -> pa.Table:
    """The catalogue of a log, CATALOGUE_SCHEMA; empty if there is none."""
    with stage("catalogue") as counts:
        frame = _configured(config) if config else _public(events)
        named = frame.filter(pl.col(Col.ITEM_ID).is_not_null())
        unique = named.unique(Col.ITEM_ID, keep="first", maintain_order=True)
        counts["rows"] = frame.height
        counts["without_id"] = frame.height - named.height
        counts["repeated"] = named.height - unique.height
        counts["items"] = unique.height
    return unique.select(CATALOGUE_SCHEMA.names).to_arrow().cast(CATALOGUE_SCHEMA)


def _configured(config: ItemsConfig) -> pl.DataFrame:
    kind, files = select_kind(find_files((config.path,)), config.format)
    columns = {field: name for field, name in config.columns.model_dump().items() if name}
    parts = []
    for file in files:
        for table in _tables(kind, file.source, list(columns.values())):
            for field, name in columns.items():
                if column_named(table, name) is None:
                    raise ConfigurationError(
                        f"items.columns.{field} is {name!r}, the catalogue has {', '.join(table.column_names)}",
                        expected="a column of the catalogue",
                    )
            parts.append(_items_of(table, columns))
    return pl.concat([_empty(), *parts])


def _tables(kind: str, source: str, columns: list[str]) -> Iterator[pa.Table]:
    if kind == "parquet":
        return (block.table for block in read_parquet_blocks(source, None, 0, columns))
    if kind == "arrow":
        return (block.table for block in read_arrow_blocks(source, None, 0))
    if kind == "jsonl":
        return (block.table for block in read_json_blocks(source, 0, columns))
    dialect = Dialect(guess_delimiter(first_lines(source, 50)))
    return (block.table for block in read_csv_blocks(source, 0, dialect))


def _items_of(table: pa.Table, columns: dict[str, str]) -> pl.DataFrame:
    found = {field: column_named(table, name) for field, name in columns.items()}
    num = table.num_rows
    category = found.get(Col.CATEGORY)
    if category is not None and pa.types.is_list(category.type):
        category = pl.Series(one_array(category)).cast(pl.List(pl.String)).list.join("/").to_arrow()
    frame = pl.DataFrame(
        {
            Col.ITEM_ID: text_of(found[Col.ITEM_ID]).values,
            Col.CATEGORY: pa.nulls(num, pa.large_string()) if category is None else text_of(category).values,
            Col.TITLE: pa.nulls(num, pa.large_string())
            if found.get(Col.TITLE) is None
            else text_of(found[Col.TITLE]).values,
            Col.VECTOR: _vectors(found.get(Col.VECTOR), num),
        }
    )
    return frame.with_columns(pl.col(Col.CATEGORY).str.replace_all(r"\s*>\s*", "/").str.strip_chars("/"))


def _vectors(column: pa.ChunkedArray | pa.Array | None, num: int) -> pl.Series:
    """Lists of numbers, or text such as `[0.1, 0.2]` or `0.1 0.2` -> lists of float32; null if not all are numbers."""
    if column is None:
        return pl.repeat(None, num, dtype=pl.List(pl.Float32), eager=True)
    array = one_array(column)
    series = pl.Series(array)
    if not pa.types.is_nested(array.type):
        text = series.cast(pl.Binary).cast(pl.String).str.strip_chars("\0[]() ")
        series = text.str.replace_all(r"[,;|\s]+", " ").str.split(" ")
    vectors = series.cast(pl.List(pl.Float32), strict=False).to_frame("vector")
    numbers = pl.col("vector").list.drop_nulls().list.len()
    is_whole = (numbers > 0) & (numbers == pl.col("vector").list.len())
    return vectors.select(pl.when(is_whole).then("vector")).to_series()


def _empty() -> pl.DataFrame:
    return pl.DataFrame(
        schema={
            Col.ITEM_ID: pl.String,
            Col.CATEGORY: pl.String,
            Col.TITLE: pl.String,
            Col.VECTOR: pl.List(pl.Float32),
        }
    )


def _public(events: EventsConfig) -> pl.DataFrame:
    if events.format == "movielens":
        return _films(event_files(events)[0].source)
    if events.format in TABLE_FORMATS or events.format in ("sequences", "cdnow"):
        return _empty()
    sample = take_sample(events)
    edition = retail_edition(sample.columns)
    is_stock_code = edition is not None and events.columns.item_id in (None, edition.stock_code)
    if edition is None or not is_stock_code or edition.description not in sample.columns:
        return _empty()
    return _descriptions(events, edition)


def _films(ratings: str) -> pl.DataFrame:
    """Titles and first genres from the file that lies beside the ratings, if it does."""
    folder, name = posixpath.split(ratings)
    beside = {
        "ratings.dat": ("movies.dat", Dialect("::", ("item_id", "title", "genres"), is_quoted=False), "|"),
        "ratings.csv": ("movies.csv", Dialect(","), "|"),
    }.get(name, (name.removesuffix(".inter") + ".item", Dialect("\t", is_quoted=False, is_typed=True), " "))
    file, dialect, separator = beside
    source = posixpath.join(folder, file)
    fs, path = file_system_of(source)
    if not fs.exists(path):
        return _empty()
    parts = [_empty()]
    for block in read_csv_blocks(source, 0, dialect):
        names = block.table.column_names
        title = next(name for name in ("movie_title", "title") if name in names)
        genre = next(name for name in ("genre", "genres") if name in names)
        item = next(name for name in ("item_id", "movieId") if name in names)
        films = _items_of(_from_latin(block.table), {Col.ITEM_ID: item, Col.CATEGORY: genre, Col.TITLE: title})
        first = pl.col(Col.CATEGORY).str.split(separator).list.first()
        has_genre = pl.col(Col.CATEGORY) != _NO_GENRE
        parts.append(films.with_columns(pl.when(has_genre).then(first).alias(Col.CATEGORY)))
    return pl.concat(parts)


def _from_latin(table: pa.Table) -> pa.Table:
    """GroupLens wrote ML-1M in Latin-1; what is UTF-8 already stays."""
    try:
        table.cast(pa.schema([(name, pa.string()) for name in table.column_names]))
    except pa.ArrowInvalid:
        columns = [[cell.decode("latin-1") for cell in column.to_pylist()] for column in table.columns]
        return pa.table([pa.array(cells, pa.string()) for cells in columns], names=table.column_names)
    return table


def _descriptions(events: EventsConfig, edition: Retail) -> pl.DataFrame:
    counts = []
    for split in plan_splits(events):
        for block in read_raw(split, events, [edition.stock_code, edition.description]):
            codes = text_of(block.table.column(edition.stock_code)).values
            titles = text_of(block.table.column(edition.description)).values
            pairs = pl.DataFrame({Col.ITEM_ID: codes, Col.TITLE: titles}).drop_nulls()
            counts.append(pairs.group_by(Col.ITEM_ID, Col.TITLE).len())
    if not counts:
        return _empty()
    total = pl.concat(counts).group_by(Col.ITEM_ID, Col.TITLE).agg(pl.col("len").sum())
    ranked = total.sort([Col.ITEM_ID, "len", Col.TITLE], descending=[False, True, False])
    titled = ranked.unique(Col.ITEM_ID, keep="first", maintain_order=True)
    return pl.concat([_empty(), titled.select(Col.ITEM_ID, Col.TITLE)], how="diagonal")
