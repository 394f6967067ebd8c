"""Events that a node accepted, shipped from its disk to the workspace, and taken over by other nodes.

    log/online/<node>/<first>-<last>.parquet     events of the contract, by their numbers in the node's own log

What is promised: an event that was accepted is on the disk of the node that accepted it; within SHIP_EVERY_S, while
the store of the workspace answers, it is in the workspace too. Who loses the disk of a node loses what it accepted
since its last segment and nothing else. A stop that is not a kill ships the rest first.
One process of a node ships (a lock file), and goes on at the last number that the workspace has. MERGE_AT small
segments in a row become one. A reader leaves out what a larger segment holds already.
A node takes over what the others have shipped into its own log, each event once by its id, and ships none of it again:
so a new node knows what happened at one that is gone, and every node refreshes profiles by the events of all.
An erased user's events are left out when a segment is written, and taken out of those that are there (`erase_shipped`);
a tombstone that comes while a segment is written is seen after it.
Limits: no segment is ever removed. For builds see sonder.profiles.log_archive.
"""

from __future__ import annotations

import logging
import math
import re
import threading
import time
from collections.abc import Callable, Iterator

import pyarrow as pa
import pyarrow.compute as pc
from filelock import FileLock, Timeout

from sonder.core.errors import NotFound, SonderError
from sonder.core.storage import Folder
from sonder.core.workspace import Workspace
from sonder.events.contract import TIMESTAMP_TYPE, Col
from sonder.events.erasure import CHANGED, read_erasures, without_erased
from sonder.events.online import OnlineEvent
from sonder.profiles.event_log import EventLog
from sonder.profiles.online_log import OnlineLog

logger = logging.getLogger("sonder")
SHIP_EVERY_S = 2.0
ADOPT_EVERY_S = 10.0  # a listing of all segments
MOST_EVENTS = 50_000  # of a segment
MERGE_AT = 64
SEQUENCE, ACCEPTED_AT = "sequence", "accepted_at"
_NAME = re.compile(r"(\d{16})-(\d{16})\.parquet")
_TEXTS = (Col.EVENT_ID, Col.USER_ID, Col.ITEM_ID, Col.ACTION, Col.SURFACE, Col.REQUEST_ID)
SCHEMA = pa.schema(
    [
        *((name, pa.large_string()) for name in _TEXTS),
        (Col.TIMESTAMP, TIMESTAMP_TYPE),
        (Col.VALUE, pa.float64()),
        (ACCEPTED_AT, TIMESTAMP_TYPE),
        (SEQUENCE, pa.int64()),
    ]
)


class LogShipper:
    """Ships the log of this node and takes over those of others; `run` it in a thread."""

    def __init__(self, workspace: Workspace, log: OnlineLog) -> None:
        self._workspace, self._log = workspace, log
        self._node = workspace.node()
        self._mine = workspace.shipped_log / self._node
        self._adopted = Folder.at(str(workspace.local)) / "log" / "adopted.json"
        self._reached: int | None = None  # the last number that the workspace has
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        self._thread = threading.Thread(target=self.run, name="ship-log", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Ship what is left, where this process is the one that ships."""
        self._closing.set()
        if self._thread is not None:
            self._thread.join()

    def run(self) -> None:
        lock = FileLock(str(self._workspace.local / "ship.lock"))
        while True:
            try:
                lock.acquire(timeout=0)
                break
            except Timeout:
                if self._closing.wait(1.0):
                    return
        try:
            adopted_at = -math.inf
            while not self._closing.is_set():
                if time.monotonic() - adopted_at >= ADOPT_EVERY_S:
                    adopted_at = time.monotonic()
                    self._tried(self.adopt)
                self._tried(self.ship)
                self._closing.wait(SHIP_EVERY_S)
            self._tried(self.ship)
        finally:
            lock.release()

    def ship(self) -> int:
        """Write what was accepted here since the last segment -> how many events."""
        if self._reached is None:
            self._reached = max((last for _, last in segments(self._mine)), default=0)
        num_shipped = 0
        while True:
            rows, reached = self._log.own_after(self._reached, MOST_EVENTS)
            if rows:
                self._write(table_of(rows), rows[0][0], rows[-1][0])
                num_shipped += len(rows)
            if reached == self._reached:
                break
            self._reached = reached
        if num_shipped:
            self._merge()
        return num_shipped

    def adopt(self) -> int:
        """Take over what others have shipped since the last time -> how many events were new here."""
        reached: dict[str, int] = self._adopted.read_json() if self._adopted.exists() else {}
        num_new, erased = 0, None
        for name in self._workspace.shipped_log.files():
            node, _, file = name.partition("/")
            place = _NAME.fullmatch(file)
            if node == self._node or place is None or int(place[2]) <= reached.get(node, 0):
                continue
            erased = read_erasures(self._workspace.erasures) if erased is None else erased
            try:
                table = (self._workspace.shipped_log / name).read_table()
            except NotFound:  # merged into a larger one meanwhile, which the next look finds
                continue
            table = table.filter(pc.greater(table.column(SEQUENCE), reached.get(node, 0)))
            num_new += self._log.adopt(events_of(without_erased(table, erased, is_ordinal=False)))
            reached[node] = int(place[2])
            self._adopted.write_json(reached)
        if num_new:
            logger.info("%d events of other nodes taken over", num_new)
        return num_new

    def _write(self, table: pa.Table, first: int, last: int) -> None:
        write_unerased(self._mine / file_name(first, last), table, self._workspace.erasures)

    def _merge(self) -> None:
        small: list[tuple[int, int]] = []
        for place in reversed(segments(self._mine)):  # in a row: a name says that it holds all in between
            if place[1] - place[0] + 1 >= MOST_EVENTS:
                break
            small.insert(0, place)
        if len(small) < MERGE_AT:
            return
        files = [self._mine / file_name(first, last) for first, last in small]
        merged = pa.concat_tables(file.read_table() for file in files)
        first, last = small[0][0], small[-1][1]
        self._write(merged, first, last)
        for file in files:
            if file.name != file_name(first, last):
                file.remove()

    def _tried(self, step: Callable[[], int]) -> None:
        try:
            step()
        except Exception as error:  # what was not shipped is shipped later
            told = error.found if isinstance(error, SonderError) else f"{type(error).__name__}: {error}"
            logger.warning("the online log could not be shipped or taken over: %s", told)


def file_name(first: int, last: int) -> str:
    """Of a file with the events of these numbers."""
    return f"{first:016d}-{last:016d}.parquet"


def write_unerased(file: Folder, table: pa.Table, erasures: Folder) -> None:
    """A file of events without those of erased users, whenever they were erased."""
    while True:
        before = _version(erasures / CHANGED)
        file.write_table(without_erased(table, read_erasures(erasures), is_ordinal=False))
        if _version(erasures / CHANGED) == before:
            return


def segments(node: Folder) -> list[tuple[int, int]]:
    """First and last number of each segment of a node, in order, without those that a larger one holds."""
    found = sorted(
        ((int(place[1]), int(place[2])) for name in node.files() if (place := _NAME.fullmatch(name))),
        key=lambda place: (place[0], -place[1]),
    )
    kept: list[tuple[int, int]] = []
    for first, last in found:
        if not kept or last > kept[-1][1]:
            kept.append((first, last))
    return kept


def erase_shipped(shipped: Folder, user_id: str, erasures: Folder) -> int:
    """Take a user's events out of every file of such a folder -> how many; the tombstone is there already.

    Whoever else was erased is left out too: of two erasures that rewrite a file at once neither undoes the other.
    """
    num_erased = 0
    for name in shipped.files():
        if not name.endswith(".parquet"):
            continue
        file = shipped / name
        try:
            users = file.read_table([Col.USER_ID]).column(Col.USER_ID)
            if not pc.any(pc.equal(users, user_id)).as_py():
                continue
            table = file.read_table()
        except NotFound:  # merged meanwhile, after the tombstone and so without the user
            continue
        others = table.filter(pc.not_equal(table.column(Col.USER_ID), user_id))
        write_unerased(file, others, erasures)
        num_erased += table.num_rows - others.num_rows
    return num_erased


def read_log(log: EventLog, after: int = 0) -> Iterator[pa.Table]:
    """What a log holds past a number, in its order, as tables of a segment's columns; it is closed at the end."""
    try:
        while rows := log.after(after, MOST_EVENTS):
            yield table_of(rows)
            after = rows[-1][0]
    finally:
        log.close()


def table_of(rows: list[tuple[int, OnlineEvent]]) -> pa.Table:
    """Events with their numbers, as a segment has them."""
    columns = {name: [getattr(event, name) for _, event in rows] for name in _TEXTS}
    columns[Col.VALUE] = [event.value for _, event in rows]
    times = {Col.TIMESTAMP: [event.time_us for _, event in rows], ACCEPTED_AT: [event.accepted_us for _, event in rows]}
    arrays = {name: pa.array(values, SCHEMA.field(name).type) for name, values in columns.items()}
    arrays |= {name: pa.array(values, pa.int64()).cast(TIMESTAMP_TYPE) for name, values in times.items()}
    arrays[SEQUENCE] = pa.array([number for number, _ in rows], pa.int64())
    return pa.table([arrays[name] for name in SCHEMA.names], schema=SCHEMA)


def events_of(table: pa.Table) -> list[OnlineEvent]:
    """The events of a segment."""
    named = {name: table.column(name).to_pylist() for name in (*_TEXTS, Col.VALUE)}
    named["time_us"] = table.column(Col.TIMESTAMP).cast(pa.int64()).to_pylist()
    named["accepted_us"] = table.column(ACCEPTED_AT).cast(pa.int64()).to_pylist()
    return [OnlineEvent(*row) for row in zip(*(named[name] for name in OnlineEvent._fields), strict=True)]


def _version(file: Folder) -> str | None:
    try:
        found = file.read_if_changed()
    except NotFound:
        return None
    return None if found is None else found[1]
