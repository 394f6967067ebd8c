"""Online stores of releases that are served no more."""

from __future__ import annotations

import shutil

from filelock import FileLock

from sonder.core.errors import InvalidRequest, NotFound
from sonder.core.workspace import Workspace
from sonder.profiles.redis_store import drop_release
from sonder.releases.canary import served_beside
from sonder.releases.registry import RELEASE_ID, Registry


def drop_store(workspace: Workspace, release_id: str, url: str | None = None) -> None:
    """Remove the online store of a release that is not the current one; the release itself stays.

    `url`: of a Redis or Valkey server, whose gateways then answer 503 for it; None: the embedded store of this
    machine, which whoever has it open goes on reading. NotFound if there is none, InvalidRequest for the current one.
    """
    if not RELEASE_ID.fullmatch(release_id):
        raise InvalidRequest(f"A release id {release_id!r}", expected="one of `sonder release list`")
    current = Registry(workspace).current()
    if current is not None and release_id in served_beside(workspace, current.release):
        raise InvalidRequest(
            f"{release_id} is served beside the current release, its store is in use",
            expected="a release that is not served",
            do="End that with `sonder canary stop`, `sonder release also ID --end` or `sonder experiment stop` first.",
        )
    if current is not None and current.release == release_id:
        raise InvalidRequest(
            f"{release_id} is the current release, its store is in use",
            expected="a release that is not served",
            do="Promote another one first.",
        )
    found = drop_release(url, release_id) > 0 if url is not None else _drop_embedded(workspace, release_id)
    if not found:
        raise NotFound(f"No online store of release {release_id}", do="`sonder release list` names the releases.")


def _drop_embedded(workspace: Workspace, release_id: str) -> bool:
    target = workspace.store / release_id
    if not target.parent.is_dir():
        return False
    with FileLock(f"{target}.lock"):
        both = (target, target.with_name(f"{release_id}.loading"))
        folders = [folder for folder in both if (folder / "data.mdb").is_file()]
        for folder in folders:
            shutil.rmtree(folder)
    target.with_name(f"{release_id}.lock").unlink(missing_ok=True)
    return bool(folders)
