"""Lists of user ids as people hand them over: plain text with one a line, CSV, or Parquet."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from sonder.core.errors import DataError

ID_COLUMN = "user_id"


def read_user_ids(file: Path) -> pl.Series:
    """The distinct ids of a file, in their order, without empty ones; ids are text, `007` stays `007`.

    CSV and Parquet: the column `user_id`, or the only one. DataError says what a file has instead.
    """
    if not file.is_file():
        raise DataError(f"No file at {file}", expected="user ids as .csv, .parquet or plain text, one a line")
    try:
        frame = _read(file)
    except (pl.exceptions.PolarsError, UnicodeDecodeError, OSError) as error:
        raise DataError(f"{file} cannot be read: {str(error).splitlines()[0]}", expected=_expected(file)) from error
    if ID_COLUMN not in frame.columns and len(frame.columns) != 1:
        raise DataError(
            f"{file} has the columns {', '.join(frame.columns[:10])}",
            expected=f"a column {ID_COLUMN}, or one column alone",
            do=f"Name the column of the ids {ID_COLUMN}.",
        )
    ids = frame.get_column(ID_COLUMN if ID_COLUMN in frame.columns else frame.columns[0])
    ids = ids.cast(pl.String).str.strip_chars().drop_nulls().unique(maintain_order=True)
    return ids.filter(ids != "").alias(ID_COLUMN)


def _read(file: Path) -> pl.DataFrame:
    if file.suffix == ".parquet":
        return pl.read_parquet(file)
    if file.suffix == ".csv":
        return pl.read_csv(file, infer_schema=False)
    return pl.DataFrame({ID_COLUMN: file.read_text(encoding="utf-8-sig").splitlines()}, schema={ID_COLUMN: pl.String})


def _expected(file: Path) -> str:
    kinds = {".parquet": "a Parquet file", ".csv": "a CSV file with a header"}
    return kinds.get(file.suffix, "UTF-8 text with one id a line")
