"""What is new since the snapshot of a release: files of the log that it was not made of, and tombstones.

A file that was changed or taken away since cannot be merged: what it said is in the history and cannot be told apart
any more. Then the sentence says which one, and that a build without --since reads the whole log.
The catalogue and the user table are small beside the log and are read whole every time, changed or not.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipelines.prepare_plan import ROWS_PER_BUCKET, Plan, archived_files, erasures_entry
from pipelines.table_formats import is_table_format
from sonder.core.config import SonderConfig
from sonder.core.errors import DataError, InvalidRequest
from sonder.core.ids import digest_json
from sonder.core.input_config import EventsConfig
from sonder.core.storage import read_manifest
from sonder.core.telemetry import logger
from sonder.core.workspace import Workspace
from sonder.events.erasure import Erased, read_erasures
from sonder.events.reading import online_splits, plan_splits, resolve
from sonder.events.users import resolve_users
from sonder.history.inputs import (
    LAYOUT_VERSION,
    describe_archived,
    describe_inputs,
    describe_table_files,
    mapping_digest,
    prepare_digest,
)

WHOLE = "Build without --since: that reads the whole log."
CROWDED = 4  # times the rows that a bucket is made for


@dataclass(frozen=True)
class Delivery:
    """What is to be merged into the snapshot of a release."""

    parent: str  # snapshot
    known: Mapping[str, Any]  # its manifest
    plan: Plan  # of the new files alone; `inputs` are those of the merged snapshot
    new_files: list[dict[str, Any]]
    erased: Erased  # tombstones that the parent's history does not know

    @property
    def is_empty(self) -> bool:
        return not self.new_files and not self.erased


def plan_delivery(config: SonderConfig, parent: str) -> Delivery:
    """Compare the log with what the snapshot `parent` was made of; DataError where that cannot be merged."""
    workspace = Workspace.at(config.workspace)
    known = read_manifest(workspace.history(parent))
    if is_table_format(config.events):
        raise InvalidRequest(f"A log of format {config.events.format!r} has no files to tell the new ones by", do=WHOLE)
    if known.get("layout") != LAYOUT_VERSION:
        raise DataError(
            f"The snapshot {parent} is of another version, which laid histories out otherwise",
            expected=f"layout {LAYOUT_VERSION}",
            do=WHOLE,
        )
    events = resolve(config.events)
    users = resolve_users(config.users, events) if config.users else None
    sections = (events, config.items, config.prepare, users.config if users else None)
    mapping = mapping_digest(*sections)
    if mapping != known["mapping_digest"]:
        raise DataError(
            f"The log is not mapped as it was for {parent}: events, items, users or prepare were changed",
            expected="the same configuration, but for where the files lie",
            do=WHOLE,
        )
    archive, names = archived_files(config, events)
    files = describe_inputs(events, None) + describe_archived(archive, names)
    before = known["inputs"][: known["num_log_files"]]
    new = _new_files(files, before)
    tombstones = read_erasures(workspace.erasures)
    erased = _new_tombstones(tombstones, known)
    tables = describe_table_files(config.items) + describe_table_files(config.users)
    entries = [erasures_entry(tombstones)] if tombstones else []
    online = {
        str(entry["path"]): (archive.archived_log / name).uri
        for entry, name in zip(describe_archived(archive, names), names, strict=True)
    }
    paths = [str(entry["path"]) for entry in new]
    own = tuple(path for path in paths if path not in online)
    reading = EventsConfig.model_validate(events.model_dump() | {"path": own}) if own else events
    splits = plan_splits(reading) if own else []
    splits += online_splits([online[path] for path in paths if path in online], events, after=splits)
    plan = Plan(
        snapshot=digest_json({"parent": parent, "new": new, "beside": tables + entries, "mapping": mapping}),
        config_digest=prepare_digest(*sections),
        mapping_digest=mapping,
        inputs=[*before, *new, *tables, *entries],
        num_log_files=len(before) + len(new),
        events=reading,
        splits=splits,
        users=users,
        num_buckets=len(known["buckets"]),
        erased=tombstones,
    )
    _warn_if_crowded(known)
    return Delivery(parent=parent, known=known, plan=plan, new_files=new, erased=erased)


def _new_files(files: list[dict[str, Any]], before: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Files that the parent was not made of, in the log's order; DataError unless all others are as they were."""
    now, then = ({str(entry["path"]): entry for entry in entries} for entries in (files, before))
    gone = [path for path in then if path not in now]
    changed = [path for path in then if path in now and now[path] != then[path]]
    for paths, what in ((gone, "gone"), (changed, "changed")):
        if paths:
            raise DataError(
                f"{len(paths)} of {len(then)} files of the log are {what} since the release was built,"
                f" such as {paths[0]}",
                expected="new files beside those that were read, each as it was",
                do=f"Put it back as it was. {WHOLE}",
            )
    return [entry for path, entry in now.items() if path not in then]


def _new_tombstones(tombstones: Erased, known: Mapping[str, Any]) -> dict[int, int]:
    """Tombstones that are younger than the snapshot, or were renewed since."""
    before = {int(digest, 16): int(moment) for digest, moment in known.get("erased", {}).items()}
    return {digest: moment for digest, moment in tombstones.items() if before.get(digest) != moment}


def _warn_if_crowded(known: Mapping[str, Any]) -> None:
    """The number of buckets was chosen for the log of the first build; a log that has outgrown it costs memory."""
    events = max((int(bucket["events"]) for bucket in known["buckets"]), default=0)
    if events > CROWDED * ROWS_PER_BUCKET:
        logger.warning(
            "increment: a bucket of the history holds %s events; a build without --since makes more", f"{events:,}"
        )
