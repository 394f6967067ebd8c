"""What a node keeps on its own disk lies apart for each workspace, and nobody takes another one's for his own."""

from __future__ import annotations

import uuid
from pathlib import Path

import pytest

from sonder.core.errors import ConfigurationError
from sonder.core.workspace import NODE_FOLDER, Workspace


def test_a_local_workspace_is_its_own_local_folder(tmp_path: Path) -> None:
    workspace = Workspace.at(str(tmp_path))
    assert (workspace.local, workspace.is_shared) == (tmp_path, False)
    assert workspace.store == tmp_path / "store"
    assert workspace.online_log == tmp_path / "log" / "online"


def test_a_shared_workspace_has_a_folder_of_its_own_on_each_node(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    one, two = (Workspace.at(f"memory://{name}/ws") for name in ("one", "two"))
    assert one.local.parent == tmp_path / "state" / "sonder"
    assert one.local != two.local
    assert one.is_shared
    monkeypatch.delenv("XDG_STATE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert one.local.parent == tmp_path / "home" / ".local" / "state" / "sonder"


def test_a_folder_may_be_named_for_any_workspace(tmp_path: Path) -> None:
    workspace = Workspace.at(str(tmp_path / "nfs"), str(tmp_path / "disk"))
    assert (workspace.local, workspace.is_shared) == (tmp_path / "disk", True)


def test_a_node_is_named_once_and_a_folder_belongs_to_one_workspace(tmp_path: Path) -> None:
    uri = f"memory://{uuid.uuid4().hex}"
    name = Workspace.at(uri, str(tmp_path)).node()
    assert Workspace.at(uri, str(tmp_path)).node() == name
    assert Workspace.at(uri, str(tmp_path / "other")).node() != name
    with pytest.raises(ConfigurationError, match=r"serving\.local_dir"):
        Workspace.at(f"memory://{uuid.uuid4().hex}", str(tmp_path)).node()


def test_a_node_keeps_its_own_where_it_was_told_and_apart_for_each_workspace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(NODE_FOLDER, str(tmp_path / "node"))
    stores = {Workspace.at(uri).store for uri in (str(tmp_path / "a"), str(tmp_path / "b"), "memory://a")}
    assert len(stores) == 3
    assert all(store.is_relative_to(tmp_path / "node") for store in stores)
    assert Workspace.at("memory://a").store in stores  # the same in every process
    assert Workspace.at(str(tmp_path / "a")).is_shared
