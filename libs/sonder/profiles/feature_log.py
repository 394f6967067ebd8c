"""What the scoring deployment read of some users, kept so that it can be computed again and compared.

Files: log/features/<release>/<time>-<random>.parquet below the workspace, each written whole; LOGGED_SCHEMA.
Who is logged is drawn by a keyed digest of the user id, so a user is logged always or never.
A row has no events: their number and a digest say which history was read, so that it can be found again in the
snapshot, or found to be another one.
Limits: rows wait in memory for at most FLUSH_S, and what waits when the process is killed is lost; where writing
cannot follow, and after MAX_ROWS rows of a process, rows are left out and counted. It is a sample, not an archive, and
nothing here removes it.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
import uuid
from collections.abc import Sequence

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray

from sonder.core.ids import digest_bytes, unit_interval
from sonder.core.storage import Folder
from sonder.events.contract import TIMESTAMP_TYPE
from sonder.history.timelines import Timelines
from sonder.profiles.packing import pack_timelines

logger = logging.getLogger("sonder")
SHARE_KEY = "sonder/features/log/1/"
FLUSH_S = 5.0
ROWS_PER_FILE = 4_096
MAX_WAITING = 256  # micro-batches
MAX_ROWS = 200_000

LOGGED_SCHEMA = pa.schema(
    [
        pa.field("user_id", pa.string(), nullable=False),
        pa.field("as_of", TIMESTAMP_TYPE, nullable=False),
        pa.field("release", pa.string(), nullable=False),
        pa.field("num_events", pa.int32(), nullable=False),  # before as_of
        pa.field("timeline_digest", pa.string(), nullable=False),
        pa.field("features", pa.list_(pa.float32()), nullable=False),
    ]
)


def timeline_digests(history: Timelines) -> list[str]:
    """16 hex digits over the packed events of each user [U]; the caller has cut them at as_of."""
    return [digest_bytes(packed) for packed in pack_timelines(history)]


def logged_rows(
    timelines: Timelines, features_UF: NDArray[np.float32], *, as_of_us: int, release: str, share: float
) -> pa.Table:
    """Rows of the users that are drawn -> LOGGED_SCHEMA, perhaps none."""
    draws = unit_interval(pl.Series(timelines.user_ids.to_pylist(), dtype=pl.String), SHARE_KEY)
    rows = np.flatnonzero(draws < share)
    if not len(rows):
        return LOGGED_SCHEMA.empty_table()
    history, width = timelines.before(as_of_us).take(rows), features_UF.shape[1]
    flat = pa.array(np.ascontiguousarray(features_UF[rows]).ravel())
    columns = [
        history.user_ids,
        pa.array(np.full(len(rows), as_of_us)).cast(TIMESTAMP_TYPE),
        pa.array([release] * len(rows)),
        pa.array(history.lengths, pa.int32()),
        pa.array(timeline_digests(history)),
        pa.ListArray.from_arrays(pa.array(np.arange(len(rows) + 1) * width, pa.int32()), flat),
    ]
    return pa.Table.from_arrays(columns, schema=LOGGED_SCHEMA)


class FeatureLog:
    """Writes rows in a thread of its own; `offer` never waits and never raises."""

    def __init__(self, folder: Folder) -> None:
        self.folder, self.num_left_out, self.num_accepted = folder, 0, 0
        self._waiting: queue.Queue[pa.Table | None] = queue.Queue(MAX_WAITING)
        self._thread = threading.Thread(target=self._run, name="feature-log", daemon=True)
        self._thread.start()

    def offer(self, rows: pa.Table) -> None:
        """Take rows to be written soon, or leave them out."""
        if rows.num_rows == 0:
            return
        try:
            if self.num_accepted + rows.num_rows > MAX_ROWS:
                raise queue.Full
            self._waiting.put_nowait(rows)
            self.num_accepted += rows.num_rows
        except queue.Full:
            if not self.num_left_out:
                logger.warning("feature log: rows are left out after %d", self.num_accepted)
            self.num_left_out += rows.num_rows

    def close(self) -> None:
        """Write what waits, then end the thread."""
        self._waiting.put(None)
        self._thread.join()

    def _run(self) -> None:
        held: list[pa.Table] = []
        due = time.monotonic() + FLUSH_S
        is_open = True
        while is_open:
            try:
                rows = self._waiting.get(timeout=max(due - time.monotonic(), 0.01))
                is_open = rows is not None
                held += [rows] if rows is not None else []
            except queue.Empty:
                pass
            if held and (not is_open or time.monotonic() >= due or _num_rows(held) >= ROWS_PER_FILE):
                self._write(held)
                held = []
            if not held:
                due = time.monotonic() + FLUSH_S

    def _write(self, held: Sequence[pa.Table]) -> None:
        try:
            (self.folder / f"{time.time_ns()}-{uuid.uuid4().hex}.parquet").write_table(pa.concat_tables(held))
        except Exception:  # a full disk must not end the thread: scores go on without their log
            self.num_left_out += _num_rows(held)
            logger.exception("feature log: %d rows could not be written", _num_rows(held))


def read_feature_log(folder: Folder) -> pa.Table:
    """All rows of one release's log -> LOGGED_SCHEMA; none where nothing was logged."""
    files = [file for file in folder.children() if file.name.endswith(".parquet")]
    if not files:
        return LOGGED_SCHEMA.empty_table()
    return pa.concat_tables([file.read_table().cast(LOGGED_SCHEMA) for file in files]).combine_chunks()


def _num_rows(tables: Sequence[pa.Table]) -> int:
    return sum(table.num_rows for table in tables)
