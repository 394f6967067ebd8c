"""Rows of who was exposed to which arm: kept in memory, written as small files by themselves, never on a request's way.

A user is logged once an hour for each experiment and arm; the first of its rows is what counts. What cannot be written
is kept and tried again; beyond MOST_BUFFERED rows new ones are dropped and counted, and a dropped user is logged at the
next answer again.
An erasure elsewhere reaches what is kept here: tombstones are looked at before a file is written and once more after,
so that whoever erases finds the row in the file, or this does.
Limits: a process that is killed loses what came since the last flush, FLUSH_S and the time of a write.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa

from services.gateway.answers import now_us
from sonder.core import metrics
from sonder.core.storage import Folder
from sonder.core.watching import Watched
from sonder.core.workspace import Workspace
from sonder.events.contract import Col
from sonder.events.erasure import CHANGED, erased_until_us, read_erasures
from sonder.experiments.exposure_files import SCHEMAS, Kind, erase_from

logger = logging.getLogger("sonder")
FLUSH_S = 5.0
MOST_BUFFERED = 50_000  # rows of a kind
MOST_REMEMBERED = 200_000  # users that were logged this hour; then all are logged anew
CLOSING_TRIES, CLOSING_PAUSE_S = 3, 0.5
_HOUR_US = 3_600_000_000
Row = tuple[Any, ...]  # in the order of the kind's schema; the experiment's name is first, the time in microseconds


class ExposureLog:
    """Of one gateway. Rows may come from several threads; files are written by one at a time."""

    def __init__(self, workspace: Workspace, gateway: str, *, clock_us: Callable[[], int] = now_us) -> None:
        self._experiments, self._gateway, self._clock_us = workspace.experiments, gateway, clock_us
        erasures = workspace.erasures
        self._erased = Watched(erasures / CHANGED, lambda: read_erasures(erasures), every_s=FLUSH_S)
        self._rows: dict[Kind, list[Row]] = {kind: [] for kind in SCHEMAS}
        self._logged, self._hour = set[tuple[str, ...]](), 0
        self._adding, self._writing = threading.Lock(), threading.Lock()
        self._numbers = itertools.count(1)

    def expose(self, experiment: str, version: int, arm: str, user_id: str, *, release: str, surface: str) -> None:
        """The user got the arm's answer, and another arm's could have been another one."""
        moment = self._clock_us()
        if self._is_new((experiment, arm, user_id), moment):
            rows = [(experiment, version, arm, user_id, moment, release, surface)]
            if not self._add("exposures", rows):
                self._logged.discard((experiment, arm, user_id))

    def show(
        self, experiment: str, version: int, user_id: str, *, request_id: str, slots: Sequence[tuple[str, str]]
    ) -> None:
        """The user got this interleaved list, each slot (item_id, team)."""
        moment, key = self._clock_us(), ("", experiment, user_id, request_id)
        if self._is_new(key, moment):
            rows = [
                (experiment, version, user_id, request_id, item_id, team, position, moment)
                for position, (item_id, team) in enumerate(slots, 1)
            ]
            if not self._add("shown", rows):
                self._logged.discard(key)

    def forget(self, user_id: str) -> int:
        """Drop what waits of a user -> rows; it is logged again when it comes back."""
        num = 0
        with self._adding:
            for kind, rows in self._rows.items():
                place = SCHEMAS[kind].get_field_index(Col.USER_ID)
                self._rows[kind] = [row for row in rows if row[place] != user_id]
                num += len(rows) - len(self._rows[kind])
            self._logged = {key for key in self._logged if user_id not in key}
        return num

    # -- writing ------------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Write what has come every FLUSH_S, until cancelled."""
        while True:
            await asyncio.sleep(FLUSH_S)
            await asyncio.to_thread(self.flush)

    async def close(self) -> None:
        """Write what is left; what cannot be written after some tries is lost, and counted."""
        for attempt in range(CLOSING_TRIES):
            if attempt:
                await asyncio.sleep(CLOSING_PAUSE_S)
            if not await asyncio.to_thread(self.flush):
                break
        with self._adding:
            for kind, rows in self._rows.items():
                if rows:
                    logger.error("%d rows of %s could not be written before this gateway ended", len(rows), kind)
                    metrics.EXPOSURES_LOST.labels(kind).inc(len(rows))
                    rows.clear()
        self._erased.close()

    def flush(self) -> int:
        """Write what waits; blocking -> rows that still wait, because they could not be written."""
        with self._writing:
            for kind in SCHEMAS:
                with self._adding:
                    taken, self._rows[kind] = self._rows[kind], []
                by_experiment = defaultdict(list)
                for row in taken:
                    by_experiment[row[0]].append(row)
                for experiment, rows in by_experiment.items():
                    self._write_or_keep(kind, experiment, rows)
            return sum(map(len, self._rows.values()))

    def _write_or_keep(self, kind: Kind, experiment: str, rows: list[Row]) -> None:
        try:
            self._erased.look()
            table = self._without_erased(_table(kind, rows))
            file = self._file(kind, experiment)
            if table.num_rows:
                file.write_table(table)
        except Exception as error:  # whatever the storage does, the rows are tried again
            logger.warning("%d rows of %s of %s wait: %s: %s", len(rows), kind, experiment, type(error).__name__, error)
            metrics.EXPOSURE_WRITE_FAILURES.inc()
            with self._adding:
                self._rows[kind] = [*rows, *self._rows[kind]]
            return
        metrics.EXPOSURES.labels(kind).inc(table.num_rows)
        if table.num_rows:
            self._erase_late(table, file)

    def _erase_late(self, table: pa.Table, file: Folder) -> None:
        """Who was erased while the file was written may not have been found in it."""
        try:
            self._erased.look()
            users = table.column(Col.USER_ID)
            left = self._without_erased(table).column(Col.USER_ID)
            for user_id in set(users.to_pylist()) - set(left.to_pylist()):
                erase_from([file], user_id, lock=self._experiments / ".erasing")
        except Exception as error:
            logger.error("an erasure may have missed %s: %s: %s", file.name, type(error).__name__, error)

    def _without_erased(self, table: pa.Table) -> pa.Table:
        erased = self._erased.value
        if not erased:
            return table
        moments = table.column("exposed_at" if "exposed_at" in table.column_names else "shown_at")
        is_kept = np.asarray(moments.cast(pa.int64())) > erased_until_us(table.column(Col.USER_ID), erased)
        return table.filter(pa.array(is_kept))

    def _file(self, kind: Kind, experiment: str) -> Folder:
        moment = datetime.fromtimestamp(time.time(), UTC)  # the number keeps two apart where the clock was set back
        name = f"{moment:%Y%m%dT%H%M%S.%f}Z-{next(self._numbers):06d}.parquet"
        return self._experiments / experiment / kind / self._gateway / name

    # -- rows ---------------------------------------------------------------------------------------------------------

    def _is_new(self, key: tuple[str, ...], moment: int) -> bool:
        """Whether it was not logged this hour; it counts as logged from now on."""
        if moment // _HOUR_US == self._hour and key in self._logged:  # most answers end here
            return False
        with self._adding:
            if moment // _HOUR_US != self._hour or len(self._logged) >= MOST_REMEMBERED:
                self._logged, self._hour = set(), moment // _HOUR_US
            if key in self._logged:
                return False
            self._logged.add(key)
            return True

    def _add(self, kind: Kind, rows: list[Row]) -> bool:
        with self._adding:
            if len(self._rows[kind]) + len(rows) > MOST_BUFFERED:
                metrics.EXPOSURES_LOST.labels(kind).inc(len(rows))
                return False
            self._rows[kind] += rows
            return True


def _table(kind: Kind, rows: Sequence[Row]) -> pa.Table:
    schema = SCHEMAS[kind]
    columns = zip(*rows, strict=True)
    arrays = [
        pa.array(column, pa.int64()).cast(field.type)
        if pa.types.is_timestamp(field.type)
        else pa.array(column, field.type)
        for column, field in zip(columns, schema, strict=True)
    ]
    return pa.Table.from_arrays(arrays, schema=schema)
