from __future__ import annotations

from pathlib import Path

import pytest

from sonder.core.errors import InvalidRequest, NotFound
from sonder.core.workspace import Workspace
from sonder.profiles.lmdb_store import LmdbStore
from sonder.profiles.redis_store import RedisStore
from sonder.profiles.store import StoreMetadata
from sonder.releases.stores import drop_store
from tests.redis_server import running_redis


def metadata(release: str) -> StoreMetadata:
    return StoreMetadata(release, as_of_us=5, dim=2, max_events=10, num_profiles=0)


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    """Stores of r-1 and r-2, of which r-2 is current; half a store of r-3, and the audiences' folder."""
    opened = Workspace.at(str(tmp_path))
    for release in ("r-1", "r-2"):
        with LmdbStore.create(opened.store / release, metadata(release)) as store:
            store.finish(metadata(release))
    LmdbStore.create(opened.store / "r-3.loading", metadata("r-3")).close()
    (opened.membership_stores / "digest").mkdir(parents=True)
    switch = {"release": "r-2", "promoted_at": "2026-01-01T00:00:00+00:00", "reason": "newest"}
    (opened.releases / "CURRENT").write_json({**switch, "predecessor": None, "history": []})
    return opened


def test_the_store_of_an_old_release_is_removed_and_the_current_one_is_not(workspace: Workspace) -> None:
    drop_store(workspace, "r-1")
    drop_store(workspace, "r-3")
    with pytest.raises(InvalidRequest, match="r-2 is the current release"):
        drop_store(workspace, "r-2")
    assert sorted(folder.name for folder in workspace.store.iterdir()) == ["audiences", "r-2"]


@pytest.mark.parametrize("release", ["r-9", "audiences"])
def test_what_has_no_store_is_not_found(workspace: Workspace, release: str) -> None:
    with pytest.raises(NotFound, match=f"No online store of release {release}"):
        drop_store(workspace, release)
    assert (workspace.membership_stores / "digest").is_dir()


@pytest.mark.parametrize("release", ["../r-1", "*", ""])
def test_what_is_no_release_id_is_refused(workspace: Workspace, release: str) -> None:
    with pytest.raises(InvalidRequest, match="A release id"):
        drop_store(workspace, release)


def test_a_store_on_a_server_is_removed_there(workspace: Workspace) -> None:
    with running_redis() as url:
        with RedisStore.create(url, metadata("r-1")) as store:
            store.finish(metadata("r-1"))
        drop_store(workspace, "r-1", url)
        with pytest.raises(NotFound):
            RedisStore.open(url, release="r-1")
        with pytest.raises(NotFound):
            drop_store(workspace, "r-1", url)
    assert (workspace.store / "r-1").is_dir()
