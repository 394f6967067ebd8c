"""Repair users in every online store of the served release: the embedded one of this machine, and the server's.

The online log is that of this machine. While nobody refreshes here, its lock is held, so that nobody starts to.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress

from filelock import FileLock, Timeout

from pipelines.repair import WAIT_S, Repair, RepairedUser
from sonder.core.config import SonderConfig
from sonder.core.errors import NotFound
from sonder.core.workspace import Workspace
from sonder.profiles.lmdb_store import LmdbStore
from sonder.profiles.online_log import OnlineLog
from sonder.profiles.redis_store import RedisStore
from sonder.profiles.store import ProfileStore
from sonder.releases.artefacts import Release, served_release


def repair_stores(
    config: SonderConfig, user_ids: Sequence[str], *, dry_run: bool = False, wait_s: float = WAIT_S
) -> dict[str, list[RepairedUser]]:
    """Repair the users in every online store of the served release -> by store; NotFound if there is none."""
    workspace = Workspace.at(config.workspace)
    release = Release.open(workspace, served_release(workspace))
    told: dict[str, list[RepairedUser]] = {}
    with nobody_refreshes(release) as is_alone, _online_log(workspace) as log:
        for name, store in _stores(release, config.serving.store):
            with closing(store):
                repair = Repair(release, store, log, dry_run=dry_run, wait_s=wait_s, is_alone=is_alone)
                told[name] = repair.run(user_ids)
    if not told:
        raise NotFound(
            f"No online store of {release.id} on this machine",
            expected="the embedded one of the workspace, or a server named by serving.store",
            do="`sonder store load` makes one, from profiles that are whole.",
        )
    return told


def _stores(release: Release, url: str | None) -> Iterator[tuple[str, ProfileStore]]:
    if release.workspace.root.is_local:
        path = release.workspace.store / release.id
        with suppress(NotFound):
            yield f"store/{release.id}", LmdbStore.open(path, release=release.id, writable=True)
    if url is not None:
        yield url, RedisStore.open(url, release=release.id)


@contextmanager
def _online_log(workspace: Workspace) -> Iterator[OnlineLog | None]:
    """The events that arrived on this machine; None where none ever did."""
    if not workspace.root.is_local or not workspace.online_log.is_dir():
        yield None
        return
    log = OnlineLog(workspace.online_log)
    try:
        yield log
    finally:
        log.close()


@contextmanager
def nobody_refreshes(release: Release) -> Iterator[bool]:
    """Whether no refresh of the release runs on this machine; then none starts within the block."""
    if not release.workspace.root.is_local:
        yield False
        return
    path = release.workspace.refresh_lock(release.id)
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(str(path))
    with suppress(Timeout):
        lock.acquire(timeout=0)
    try:
        yield lock.is_locked
    finally:
        if lock.is_locked:
            lock.release()
