"""Events that arrived online, in files that stay as they are: what a build reads beside the log (`events.online`).

    log/archive/<source>/<first>-<last>.parquet      events of the contract, by their numbers in the log of that source

A source is the node that accepted them, `local` where a workspace has no others, or `store` for the log on the server
of a networked store. `archive` adds what was accepted since the newest file; what is there is never merged or written
again, so that a later delivery finds the files that a snapshot was made of, and new ones beside them. One process
archives at a time; one that dies leaves whole files, and the next goes on after them.
An erased user's events are left out, and taken out of files that are there (`log_shipping.erase_shipped`).
Limits: what a node has not shipped yet (sonder.profiles.log_shipping) is not seen; no file is ever removed.
"""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa
import pyarrow.compute as pc

from sonder.core.errors import DataError, NotFound
from sonder.core.locking import exclusive
from sonder.core.storage import Folder
from sonder.core.workspace import Workspace
from sonder.profiles.event_log import open_event_log
from sonder.profiles.log_shipping import SEQUENCE, file_name, read_log, segments, write_unerased

LOCAL, STORE = "local", "store"  # sources
ROWS_PER_FILE = 1_000_000
_WAIT_S = 600.0
_TRIES = 10  # a segment may be merged into a larger one between a listing and its reading


def archive(workspace: Workspace, store_url: str | None) -> int:
    """Write what was accepted since the newest file of each source -> how many events; DataError after a long wait."""
    try:
        with exclusive(workspace.staging("archive.lock"), timeout_s=_WAIT_S) as held:
            num_events = 0
            for source, tables in _sources(workspace, store_url):
                for table in _large(tables):
                    held.check()
                    numbers = table.column(SEQUENCE)
                    file = workspace.archived_log / source / file_name(numbers[0].as_py(), numbers[-1].as_py())
                    write_unerased(file, table, workspace.erasures)
                    num_events += table.num_rows
            return num_events
    except TimeoutError as error:
        raise DataError(
            f"Another process has been archiving the events of {workspace.root} for {_WAIT_S:.0f} s ({error})",
            expected="one process at a time, for minutes",
            do="Wait for it, or end it; the next goes on where it stopped.",
        ) from error


def archived(workspace: Workspace) -> list[str]:
    """The files, by source and number, as paths below `workspace.archived_log`."""
    return [
        f"{source.name}/{file_name(first, last)}"
        for source in sorted(workspace.archived_log.children(), key=lambda folder: folder.name)
        for first, last in segments(source)
    ]


def _sources(workspace: Workspace, store_url: str | None) -> Iterator[tuple[str, Iterator[pa.Table]]]:
    """Each source and what it has that is not archived, by number."""
    if store_url is not None or not workspace.is_shared:
        source = LOCAL if store_url is None else STORE
        if store_url is not None or workspace.online_log.is_dir():
            yield source, read_log(open_event_log(workspace, store_url), _reached(workspace, source))
        return
    for node in workspace.shipped_log.children():
        yield node.name, _of_node(node, _reached(workspace, node.name))


def _reached(workspace: Workspace, source: str) -> int:
    """The last number of a source that is archived."""
    return max((last for _, last in segments(workspace.archived_log / source)), default=0)


def _of_node(node: Folder, reached: int) -> Iterator[pa.Table]:
    tries = 0
    while found := [(first, last) for first, last in segments(node) if last > reached]:
        first, last = found[0]
        try:
            table = (node / file_name(first, last)).read_table()
        except NotFound:
            tries += 1
            if tries == _TRIES:
                raise
            continue
        yield table.filter(pc.greater(table.column(SEQUENCE), reached))
        tries, reached = 0, last


def _large(tables: Iterator[pa.Table]) -> Iterator[pa.Table]:
    """The same rows in tables of about ROWS_PER_FILE, none of them empty."""
    held: list[pa.Table] = []
    for table in tables:
        held.append(table)
        if sum(part.num_rows for part in held) >= ROWS_PER_FILE:
            yield pa.concat_tables(held)
            held = []
    if any(part.num_rows for part in held):
        yield pa.concat_tables(held)
