"""`sonder forget`: erase a user without a running gateway, and show by search where the user still is.

The same as DELETE /v1/users/{id}: a tombstone, then out of the online log, of what nodes have shipped and builds have
archived of it, of the tables of experiments, and of every store on this machine. Gateways
that run meanwhile see it at once. The search reads the user column of every table of the workspace: what it finds are
releases and snapshots that exist already, which the next build leaves behind and `sonder release` may remove.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import pyarrow.compute as pc
import pyarrow.parquet as pq

from sonder.core.config import SonderConfig
from sonder.core.storage import Folder
from sonder.core.workspace import Workspace
from sonder.events.contract import Col
from sonder.events.erasure import record_erasure
from sonder.experiments.exposure_files import erase_rows
from sonder.profiles.lmdb_store import LmdbStore
from sonder.profiles.log_shipping import erase_shipped
from sonder.profiles.online_log import OnlineLog
from sonder.profiles.redis_log import RedisLog
from sonder.profiles.redis_store import RedisStore
from sonder.releases.canary import served_beside
from sonder.releases.registry import Registry

SEARCHED = ("history", "releases", "backfills", "audiences", "uplift", "experiments", "quarantine", "log", ".staging")


@dataclass
class Forgotten:
    """What was removed, and where rows of the user still are."""

    events_removed: int = 0
    exposures_removed: int = 0  # rows of experiments
    stores: list[str] = field(default_factory=list)  # that had a record
    remaining: dict[str, int] = field(default_factory=dict)  # folder -> rows


def forget(config: SonderConfig, user_id: str) -> Forgotten:
    """Erase the user; safe to repeat."""
    workspace, told = Workspace.at(config.workspace, config.serving.local_dir), Forgotten()
    record_erasure(workspace.erasures, user_id, at_us=time.time_ns() // 1000)
    if workspace.online_log.is_dir():
        log = OnlineLog(workspace.online_log)
        told.events_removed = log.erase(user_id)
        log.close()
    in_files = max(erase_shipped(copy, user_id, workspace.erasures) for copy in workspace.log_copies)
    told.exposures_removed = erase_rows(workspace.experiments, user_id)
    for release in _loaded_releases(workspace):
        with LmdbStore.open(workspace.store / release, release=release, writable=True) as store:
            if store.delete(user_id):
                told.stores.append(f"store/{release}")
    current = Registry(workspace).current()
    if config.serving.store is not None:
        networked_log = RedisLog(config.serving.store)
        told.events_removed += networked_log.erase(user_id)
        networked_log.close()
    told.events_removed = max(told.events_removed, in_files)
    if config.serving.store is not None and current is not None:
        for release in (current.release, *served_beside(workspace, current.release)):
            with RedisStore.open(config.serving.store, release=release) as networked:
                if networked.delete(user_id):
                    told.stores.append(f"{config.serving.store} {release}")
    told.remaining = search(workspace, user_id)
    return told


def search(workspace: Workspace, user_id: str) -> dict[str, int]:
    """Rows of the user by folder of the workspace, over every Parquet file that has a user column."""
    found: dict[str, int] = {}
    for top in SEARCHED:
        folder = workspace.root / top
        for name in folder.files() if folder.exists() else ():
            if name.endswith(".parquet") and (rows := _rows_of(folder / name, user_id)):
                place = "/".join([top, *name.split("/")[:1]])
                found[place] = found.get(place, 0) + rows
    return found


def _rows_of(file: Folder, user_id: str) -> int:
    with file.open() as content:
        parquet = pq.ParquetFile(content)
        if Col.USER_ID not in parquet.schema_arrow.names:
            return 0
        column = parquet.read([Col.USER_ID]).column(0)
    return int(pc.sum(pc.equal(column.cast("string"), user_id)).as_py() or 0)


def _loaded_releases(workspace: Workspace) -> list[str]:
    if not workspace.store.is_dir():
        return []
    return sorted(file.parent.name for file in workspace.store.glob("*/data.mdb") if file.parent.suffix != ".loading")
