"""What a snapshot is made from: the files and their content, and the id that follows from them.

Events that arrived online enter by the names of their files: these change by erasures alone, an input of their own.
The id is a digest of the resolved `events`, `items`, `users` and `prepare` sections (paths included; excluded what only
decides whether to fail or what may be told), of every input file, and of the version of the layout. A local file enters
with the digest of its bytes, so a log written again with the same content is the same input; a remote one with its size
and what its store says about its version (etag, else time of modification). Cost: local files are read once more, about
1 GB/s.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sonder.core.config import PrepareConfig
from sonder.core.ids import digest_json
from sonder.core.input_config import EventsConfig, ItemsConfig, UsersConfig
from sonder.core.storage import Folder, file_system_of
from sonder.core.workspace import Workspace
from sonder.events.files import LogFile, find_files
from sonder.events.public_logs import located

LAYOUT_VERSION = 2  # raise it when the same inputs give other bytes than before
_VERSION_KEYS = ("ETag", "etag", "e_tag", "LastModified", "last_modified", "updated", "mtime", "created")


def describe_inputs(events: EventsConfig, items: ItemsConfig | None) -> list[dict[str, Any]]:
    """One entry per file of the log, then of the catalogue, in their order: path, size_bytes and digest or version."""
    return [_describe(file) for file in find_files(located(events))] + describe_table_files(items)


def describe_archived(workspace: Workspace, names: Sequence[str]) -> list[dict[str, Any]]:
    """One entry per file of the events that arrived online: its place in the workspace, wherever that is."""
    top = workspace.archived_log.path.removeprefix(f"{workspace.root.path}/")
    return [{"path": f"{top}/{name}"} for name in names]


def describe_table_files(table: ItemsConfig | UsersConfig | None) -> list[dict[str, Any]]:
    """One entry per file of the catalogue or of the user table."""
    return [_describe(file) for file in find_files((table.path,))] if table else []


def prepare_digest(
    events: EventsConfig, items: ItemsConfig | None, prepare: PrepareConfig, users: UsersConfig | None = None
) -> str:
    """16 hex digits over the configuration that decides what a snapshot holds."""
    return digest_json(_sections(events, items, prepare, users))


def mapping_digest(
    events: EventsConfig, items: ItemsConfig | None, prepare: PrepareConfig, users: UsersConfig | None = None
) -> str:
    """The same but for where the files lie: what has to agree for a later delivery to be merged."""
    sections = _sections(events, items, prepare, users)
    for table in ("events", "items", "users"):
        if sections.get(table):
            sections[table].pop("path")
    return digest_json(sections)


def _sections(
    events: EventsConfig, items: ItemsConfig | None, prepare: PrepareConfig, users: UsersConfig | None
) -> dict[str, Any]:
    sections: dict[str, Any] = {
        "events": events.model_dump(mode="json", exclude={"max_bad_fraction", "online"}),
        "items": items.model_dump(mode="json") if items else None,
        "prepare": prepare.model_dump(mode="json"),
        "layout": LAYOUT_VERSION,
    }
    if users:
        sections["users"] = users.model_dump(mode="json", exclude={"sensitive"})
    return sections


def snapshot_id(config_digest: str, inputs: list[dict[str, Any]]) -> str:
    """16 hex digits: the same inputs and configuration give the same id."""
    return digest_json({"config": config_digest, "inputs": inputs})


def _describe(file: LogFile) -> dict[str, Any]:
    entry: dict[str, Any] = {"path": file.source, "size_bytes": file.size_bytes}
    folder = Folder.at(file.source)
    if folder.is_local:
        return {**entry, "digest": folder.digest()}
    fs, path = file_system_of(file.source)
    details = fs.info(path)
    version = next((str(details[key]) for key in _VERSION_KEYS if details.get(key)), "")
    return {**entry, "version": version}
