"""Where exposures and interleaved lists lie: small Parquet files, one writer a folder, read together, erased by user.

experiments/<name>/exposures/<writer>/<time>.parquet   EXPOSURE_SCHEMA
experiments/<name>/shown/<writer>/<time>.parquet       SHOWN_SCHEMA
A file appears whole. Who writes may write a row again that it was not sure of; readers take such rows once.
Limits: an erasure reads the user column of every table below experiments/ (two small reads a file on an object store).
"""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Literal

import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from sonder.core.errors import NotFound, NotReady
from sonder.core.locking import exclusive
from sonder.core.storage import Folder
from sonder.events.contract import Col
from sonder.experiments.exposures import EXPOSURE_SCHEMA, SHOWN_SCHEMA

Kind = Literal["exposures", "shown"]
SCHEMAS: dict[Kind, pa.Schema] = {"exposures": EXPOSURE_SCHEMA, "shown": SHOWN_SCHEMA}
_AT_ONCE = 8
_LOCK_S = 30.0


def read_exposures(experiments: Folder, name: str) -> pl.DataFrame:
    """Every exposure of an experiment, in EXPOSURE_SCHEMA, by time; none where nobody was exposed."""
    return _read(experiments / name, "exposures").unique(maintain_order=True).sort("exposed_at", maintain_order=True)


def read_shown(experiments: Folder, name: str) -> pl.DataFrame:
    """Every slot of the interleaved lists of an experiment, in SHOWN_SCHEMA; of a request that was answered twice,
    the first answer's."""
    slots = _read(experiments / name, "shown").sort("shown_at", maintain_order=True)
    return slots.unique([Col.USER_ID, Col.REQUEST_ID, Col.ITEM_ID], keep="first", maintain_order=True)


def erase_rows(experiments: Folder, user_id: str) -> int:
    """Take a user out of every table of every experiment -> rows that were removed; repeating it is harmless.

    NotReady where other erasures keep the files busy for too long.
    """
    names = [name for name in experiments.files() if name.endswith(".parquet")] if experiments.exists() else []
    return erase_from([experiments / name for name in names], user_id, lock=experiments / ".erasing")


def erase_from(files: Iterable[Folder], user_id: str, *, lock: Folder) -> int:
    """The same of some files, one erasure at a time: two that rewrite a file would undo one another."""
    with ThreadPoolExecutor(_AT_ONCE) as readers:
        known = list(files)
        concerned = [
            file for file, rows in zip(known, readers.map(lambda f: _rows(f, user_id), known), strict=True) if rows
        ]
    if not concerned:
        return 0
    try:
        with exclusive(lock, timeout_s=_LOCK_S):
            return sum(_erase(file, user_id) for file in concerned)
    except TimeoutError as error:
        raise NotReady("Another erasure is rewriting exposures", do="Erase the user again shortly.") from error


def _rows(file: Folder, user_id: str) -> int:
    try:
        with file.open() as content:
            parquet = pq.ParquetFile(content)
            if Col.USER_ID not in parquet.schema_arrow.names:
                return 0
            column = parquet.read([Col.USER_ID]).column(0)
    except NotFound:  # erased meanwhile
        return 0
    return int(pc.sum(pc.equal(column.cast(pa.string()), user_id)).as_py() or 0)


def _erase(file: Folder, user_id: str) -> int:
    if not (num := _rows(file, user_id)):
        return 0
    table = file.read_table()
    kept = table.filter(pc.not_equal(table.column(Col.USER_ID).cast(pa.string()), user_id))
    if kept.num_rows:
        file.write_table(kept)
    else:
        file.remove()
    return num


def _read(experiment: Folder, kind: Kind) -> pl.DataFrame:
    folder = experiment / kind
    names = [name for name in folder.files() if name.endswith(".parquet")] if folder.exists() else []

    def table(name: str) -> pa.Table:
        with suppress(NotFound):  # erased meanwhile
            return (folder / name).read_table().cast(SCHEMAS[kind])
        return SCHEMAS[kind].empty_table()

    with ThreadPoolExecutor(_AT_ONCE) as readers:
        tables = list(readers.map(table, names))
    frame = pl.from_arrow(pa.concat_tables([SCHEMAS[kind].empty_table(), *tables]))
    assert isinstance(frame, pl.DataFrame)
    return frame
