"""What `prepare` reads and into how many buckets, settled before any work by a look at the log and the user table.

With `events.online` that is also what is archived of the events that arrived online; `archive_online` archives more.
Only commands that begin a build do that: a build that goes on after a kill has to find the inputs that it began with.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipelines.table_formats import describe_table, is_table_format, resolve_table
from sonder.core.config import SonderConfig
from sonder.core.errors import ConfigurationError
from sonder.core.ids import digest_json
from sonder.core.input_config import EventsConfig
from sonder.core.telemetry import stage
from sonder.core.workspace import Workspace
from sonder.events.contract import Col
from sonder.events.erasure import read_erasures
from sonder.events.files import compression_of
from sonder.events.reading import LogSplit, online_splits, plan_splits, resolve
from sonder.events.users import UserTable, resolve_users
from sonder.history.inputs import (
    describe_archived,
    describe_inputs,
    describe_table_files,
    mapping_digest,
    prepare_digest,
    snapshot_id,
)
from sonder.profiles.log_archive import archive, archived

ROWS_PER_BUCKET = 250_000  # about 25 MB while it is assembled
MAX_BUCKETS = 999
BYTES_PER_TEXT_ROW, BYTES_PER_COMPRESSED_ROW = 80, 20
OPTIONAL_COLUMNS = (Col.EVENT_ID, Col.SURFACE, Col.VALUE, Col.REQUEST_ID)


@dataclass(frozen=True)
class Plan:
    """What is read, settled before any work: the same log always gives the same plan."""

    snapshot: str
    config_digest: str
    mapping_digest: str
    inputs: list[dict[str, Any]]  # files of the log first, then those of events that arrived online
    num_log_files: int
    events: EventsConfig  # resolved
    splits: list[LogSplit]  # of a table format only those of events that arrived online
    users: UserTable | None
    num_buckets: int
    erased: dict[int, int]  # tombstones: what these users did is not read

    @property
    def is_ordinal(self) -> bool:
        """Whether the log's times are only an order: they have no days, so nothing per day can be said."""
        return self.events.timestamp == "ordinal"

    @property
    def absent(self) -> tuple[str, ...]:
        """Optional fields that this log does not have; what arrived online may have all of them."""
        if any(split.is_online for split in self.splits):
            return ()
        return tuple(name for name in OPTIONAL_COLUMNS if getattr(self.events.columns, name) is None)

    @property
    def sources(self) -> Mapping[int, str] | str:
        """Name of each file by its index in `log_order`."""
        if is_table_format(self.events):
            return self.events.paths[0] + (" or online" if self.splits else "")
        return {split.file_index: split.source for split in self.splits}


def make_plan(config: SonderConfig) -> Plan:
    """Look at the log and settle what a snapshot of it is."""
    if is_table_format(config.events):
        events, splits = resolve_table(config.events), []
        inputs = [describe_table(events)]
    else:
        events = resolve(config.events)
        splits, inputs = plan_splits(events), describe_inputs(events, None)
    workspace, files = archived_files(config, events)
    splits += online_splits([(workspace.archived_log / name).uri for name in files], events, after=splits)
    inputs += describe_archived(workspace, files)
    num_log_files = len(inputs)
    inputs += describe_table_files(config.items)
    users = resolve_users(config.users, events) if config.users else None
    user_splits = users.splits() if users else []
    rows = max(_num_rows(splits, inputs[0].get("rows")), _num_rows(user_splits, None))
    inputs += describe_table_files(config.users)
    erased = read_erasures(workspace.erasures)
    if erased:  # a snapshot is of a log without them, another one after each erasure
        inputs.append(erasures_entry(erased))
    sections = (events, config.items, config.prepare, users.config if users else None)
    digest = prepare_digest(*sections)
    return Plan(
        snapshot=snapshot_id(digest, inputs),
        config_digest=digest,
        mapping_digest=mapping_digest(*sections),
        inputs=inputs,
        num_log_files=num_log_files,
        events=events,
        splits=splits,
        users=users,
        erased=erased,
        num_buckets=config.prepare.num_buckets or derive_num_buckets(splits, rows),
    )


def archive_online(config: SonderConfig) -> int:
    """Make what was accepted online until now a part of the log, where the configuration wants it -> new events."""
    if not config.events.online:
        return 0
    with stage("online.archive") as counts:
        counts["events"] = archive(Workspace.at(config.workspace, config.serving.local_dir), config.serving.store)
    return int(counts["events"])


def archived_files(config: SonderConfig, events: EventsConfig) -> tuple[Workspace, list[str]]:
    """What of the events that arrived online is a part of the log; none unless the configuration says so."""
    workspace = Workspace.at(config.workspace)
    if not config.events.online:
        return workspace, []
    if events.timestamp == "ordinal":
        raise ConfigurationError(
            "events.online is set, and the times of the log are only an order",
            expected="a log with times, for events that arrive online have some",
            do="Leave events.online out.",
        )
    return workspace, archived(workspace)


def erasures_entry(erased: Mapping[int, int]) -> dict[str, Any]:
    """Tombstones among the inputs of a snapshot."""
    return {"path": "erasures", "users": len(erased), "digest": digest_json(sorted(erased.items()))}


def derive_num_buckets(splits: Sequence[LogSplit], rows: int | None) -> int:
    """Buckets of about ROWS_PER_BUCKET rows, from the rows that the log's files declare or their size suggests."""
    return min(max(1, -(-_num_rows(splits, rows) // ROWS_PER_BUCKET)), MAX_BUCKETS)


def _num_rows(splits: Sequence[LogSplit], rows: int | None) -> int:
    if rows is not None:
        return rows
    return sum(split.num_rows if split.num_rows is not None else _rows_by_size(split) for split in splits)


def _rows_by_size(split: LogSplit) -> int:
    return split.size_bytes // (BYTES_PER_COMPRESSED_ROW if compression_of(split.source) else BYTES_PER_TEXT_ROW)
